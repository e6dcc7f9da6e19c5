# SPDX-License-Identifier: Apache-2.0
"""Policies and context as written: files in, a World and all that is wrong out."""
