# SPDX-License-Identifier: Apache-2.0
"""The Star Wars scenario of Cilium's guide, played through real Envoys."""
