# SPDX-License-Identifier: Apache-2.0
"""The churn set stays as large as it is, or memory that grows with it would look like a leak."""

from __future__ import annotations

from pathlib import Path

from tests.load.churn_set import OWN_LABELS, Churn
from tests.load.generate import Scale


def labelled(churn: Churn) -> list[frozenset[tuple[str, str]]]:
    return [frozenset(pod["metadata"]["labels"].items()) for held in churn._pods.values() for pod in held]


def test_labels_nobody_had_go_as_they_come(tmp_path: Path) -> None:
    churn = Churn(tmp_path / "sources" / "objects", Scale(5, 1_000, 50))
    churn.write()
    churn._replace = lambda path, texts: None  # type: ignore[method-assign]
    sizes = []
    for number in range(8_000):
        churn.change_endpoint()
        if number >= 3_000 and number % 1_000 == 0:
            sizes.append(sum(1 for labels in labelled(churn) if "version" in dict(labels)))
    assert min(sizes) > 0
    assert max(sizes) <= OWN_LABELS
