"""Ordering inside compiled code."""

from __future__ import annotations

from typing import Any

from helixnb_kernels._jit import helper


@helper
def sort_by(order: Any, keys: Any) -> None:
    """Sort indices by their keys, ascending: Shell's sort with Ciura's gaps, in place.

    It compiles in a fraction of the time of ``np.argsort``, and is as fast for a batch.
    """
    for gap in (1750, 701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, len(order)):
            moved = order[i]
            key = keys[moved]
            j = i
            while j >= gap and keys[order[j - gap]] > key:
                order[j] = order[j - gap]
                j -= gap
            order[j] = moved
