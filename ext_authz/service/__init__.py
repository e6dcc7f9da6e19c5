# SPDX-License-Identifier: Apache-2.0
"""The ext_authz service: decisions over gRPC."""
