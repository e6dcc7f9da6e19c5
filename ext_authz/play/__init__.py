# SPDX-License-Identifier: Apache-2.0
"""Ways to play cases: through the engine, or through a real Envoy with one of the doors."""
