# SPDX-License-Identifier: Apache-2.0
"""
A user's own Envoy configuration, judged: `idmesh doctor --envoy-config FILE`.

It is read into nodes that know where they stand (node.py, reading.py), arranged once into listeners, filters and
doors (view.py), and looked at by small checks, a file per noun.
"""
