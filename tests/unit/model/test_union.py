# SPDX-License-Identifier: Apache-2.0
"""Laws of counting keys by difference: the same as counting them anew."""

from __future__ import annotations

import random
from collections import Counter

from ext_authz.model.union import Union


def test_after_every_change_it_knows_what_counting_anew_would_know() -> None:
    source, union = random.Random(1), Union()
    maps: list[dict[int, None]] = []
    for _ in range(300):
        if maps and source.random() < 0.5:
            maps.pop(source.randrange(len(maps)))
        maps.append(dict.fromkeys(source.sample(range(30), source.randrange(6))))
        union.set(maps)
        counts = Counter(key for one in maps for key in one)
        assert union.shared == sum(count > 1 for count in counts.values())
        assert all((key in union) == (key in counts) for key in range(30))
