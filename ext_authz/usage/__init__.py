# SPDX-License-Identifier: Apache-2.0
"""The command line described: what shells complete and the manual page, from the one tree of parsers."""
