"""Ordering inside compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np

from helixnb_kernels._jit import helper

_BUCKETS = 1_024
_ONE = np.uint64(1)


@helper
def order_of(keys: Any) -> Any:
    """Return the indices of integer keys in ascending order of the keys.

    Keys are counted into buckets by their leading bits, and buckets are put in order by Shell's
    sort with Ciura's gaps, as far as the largest bucket needs them. It compiles in a fraction of
    the time of ``np.argsort``, and mispredicts fewer branches.
    """
    order = np.empty(len(keys), np.int64)
    if len(keys) == 0:
        return order
    low, high = keys[0], keys[0]
    for key in keys:
        low, high = min(low, key), max(high, key)
    shift = np.uint64(0)
    while np.uint64(high - low) >> shift >= np.uint64(_BUCKETS):
        shift += _ONE
    ends = np.zeros(_BUCKETS, np.int64)
    for key in keys:
        ends[np.uint64(key - low) >> shift] += 1
    largest, start = np.int64(0), np.int64(0)
    for bucket in range(_BUCKETS):
        count = ends[bucket]
        largest = max(largest, count)
        ends[bucket] = start
        start += count
    for i in range(len(keys)):
        at = np.uint64(keys[i] - low) >> shift
        order[ends[at]] = i
        ends[at] += 1
    for gap in (1750, 701, 301, 132, 57, 23, 10, 4, 1):
        if gap < largest:
            for i in range(gap, len(order)):
                moved = order[i]
                key = keys[moved]
                j = i
                while j >= gap and keys[order[j - gap]] > key:
                    order[j] = order[j - gap]
                    j -= gap
                order[j] = moved
    return order
