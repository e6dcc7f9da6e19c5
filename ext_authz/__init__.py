# SPDX-License-Identifier: Apache-2.0
"""Identity-based network policy for Envoy."""
