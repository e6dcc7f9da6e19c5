# SPDX-License-Identifier: Apache-2.0
"""Envoy configuration: one generator, from what is wanted to a complete bootstrap."""
