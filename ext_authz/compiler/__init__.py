# SPDX-License-Identifier: Apache-2.0
"""From policies to the snapshot that the engine decides from."""
