# SPDX-License-Identifier: Apache-2.0
"""Checks of what a node needs; each part of the project adds its own to the registry."""
