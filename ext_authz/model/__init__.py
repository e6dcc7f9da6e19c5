# SPDX-License-Identifier: Apache-2.0
"""Policies and context as written: files in, a World and all that is wrong out."""

# Names of the files that are read in a folder. Here, where whoever only watches them need not load the reader.
SUFFIXES = (".yaml", ".yml", ".json")
