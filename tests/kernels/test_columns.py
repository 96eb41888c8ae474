"""Columns of a kernel: the same values as its jobs alone, whole or in part."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from helixnb_kernels import HASH_MIX, PRIME_COUNT, Columns, reference, warm_up

ROWS = st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=5), max_size=12)


def columns(rows: list[list[int]]) -> Columns:
    """Return jobs with these inputs, of rising cost, whose offsets don't begin at 0."""
    flat = np.array([7, *(v for row in rows for v in row)], np.uint64)
    offsets = 1 + np.cumsum([0, *map(len, rows)])
    costs = 640 * np.arange(1, len(rows) + 1, dtype=np.uint64)
    return HASH_MIX.as_columns(flat, offsets, costs, np.arange(len(rows), dtype=np.uint64))


@given(ROWS, st.data())
def test_any_part_gives_what_the_jobs_give_alone(
    rows: list[list[int]], data: st.DataObject
) -> None:
    """A slice, or any choice of jobs in any order."""
    warm_up([HASH_MIX])
    alone = [reference.hash_mix(row, 10 * (i + 1)) for i, row in enumerate(rows)]
    made = columns(rows)
    assert [made.inputs_of(i).tolist() for i in range(len(rows))] == rows
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    values, failed, parallel = HASH_MIX.run_columns(made, start, stop)
    assert values.tolist() == alone[start:stop]
    assert not failed.any()
    assert not parallel
    chosen = data.draw(st.permutations(range(len(rows))))[: len(rows) // 2 + 1]
    if chosen:
        taken = made.take(np.array(chosen))
        assert [taken.inputs_of(i).tolist() for i in range(len(chosen))] == [
            rows[i] for i in chosen
        ]
        values, _, _ = HASH_MIX.run_columns(taken, 0, len(chosen))
        assert values.tolist() == [alone[i] for i in chosen]


def test_inputs_are_joined_as_each_would_be_taken() -> None:
    """Lists, tuples and arrays may be mixed; the numbers of inputs come with them."""
    flat, lengths = PRIME_COUNT.join_inputs([[1, 2], [], [2**64 - 1]])
    assert (flat.tolist(), lengths) == ([1, 2, 2**64 - 1], [2, 0, 1])
    flat, lengths = PRIME_COUNT.join_inputs([(1, 2), np.array([3], np.int32), []])
    assert (flat.tolist(), lengths) == ([1, 2, 3], [2, 1, 0])
    assert flat.dtype == np.uint64
    flat, lengths = PRIME_COUNT.join_inputs([])
    assert (flat.tolist(), lengths) == ([], [])
