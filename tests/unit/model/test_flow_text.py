# SPDX-License-Identifier: Apache-2.0
"""The text that an item of a List is kept as."""

from __future__ import annotations

import pytest

from ext_authz.model.load import load_text

LIST = """kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: a
    annotations: {{{key}: x}}
"""


@pytest.mark.parametrize("length", [1, 1000, 1023, 1100, 5000])
def test_an_item_reads_the_same_from_its_own_text_however_long_its_keys(length: int) -> None:
    key = f"? {'k' * length}"
    (item,) = load_text(LIST.format(key=key), "f.yaml").objects
    assert item.ok
    (again,) = load_text(item.text, "o.yaml").objects
    assert again.ok
    assert again.ref == item.ref
