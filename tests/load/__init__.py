# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what is measured, how, and the tables made of it. `make bench` runs all of it."""
