# SPDX-License-Identifier: Apache-2.0
"""One module a command: register(subparsers) declares it, run(args) does it and returns the exit code."""
