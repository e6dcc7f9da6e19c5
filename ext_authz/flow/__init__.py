# SPDX-License-Identifier: Apache-2.0
"""
The flow record and its sinks: rings of binary records in, lines with Hubble's names out.

A leaf: it knows the engine's layouts and nothing of the service or the agent, and nothing here can change a decision.
"""
