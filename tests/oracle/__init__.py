# SPDX-License-Identifier: Apache-2.0
"""
The oracle: policy semantics once more, slow and plain, to judge the product by.

It reads policy documents and world fixtures as the YAML parser leaves them and follows the recipe of the
semantics reference (section 19) step by step. It shares no code with the compiler, the identities or the engine.
"""

from tests.oracle.decide import Conflict, Oracle, evaluate

__all__ = ["Conflict", "Oracle", "evaluate"]
