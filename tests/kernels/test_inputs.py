"""Conversion of a job's inputs."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest

from helixnb_kernels import HASH_MIX, hash_mix, monte_carlo_var, warm_up

as_inputs = HASH_MIX.as_inputs


@pytest.mark.parametrize(
    "values",
    [
        [],
        (),
        [0, 2**64 - 1],
        range(3),
        array("Q", [5, 2**64 - 1]),
        [np.uint64(7), np.int8(3)],
        np.array([1, 2], np.int32),
        np.array([1, 2**64 - 1], np.uint64),
        np.array([1, 2], ">u8"),
        np.arange(10, dtype=np.uint64)[::3],
        np.empty(0, np.int64),
    ],
)
def test_integers_are_taken(values: Any) -> None:
    """Sequences and arrays of non-negative integers become contiguous uint64 arrays."""
    converted = as_inputs(values)
    assert converted.dtype == np.uint64
    assert converted.dtype.isnative
    assert converted.flags.c_contiguous
    assert converted.tolist() == [int(value) for value in values]


def test_a_fitting_array_is_not_copied() -> None:
    """A contiguous uint64 array goes to the kernel as it is, even if it is read-only."""
    warm_up([HASH_MIX])
    given = np.arange(5, dtype=np.uint64)
    assert as_inputs(given) is given
    given.setflags(write=False)
    assert as_inputs(given) is given
    assert HASH_MIX.solo_call(given, 64, 1)() == hash_mix(range(5), 1) == hash_mix(given, 1)
    assert monte_carlo_var(given, 50, 1) == monte_carlo_var(range(5), 50, 1)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([1.0], TypeError, r"inputs\[0\] must be an integer, got 1.0"),
        ([1, True], TypeError, r"inputs\[1\] must be an integer, got True"),
        ([1, np.True_], TypeError, r"inputs\[1\] must be an integer"),
        ([None], TypeError, r"inputs\[0\] must be an integer, got None"),
        ([[1]], TypeError, r"inputs\[0\] must be an integer, got \[1\]"),
        (["1"], TypeError, r"inputs\[0\] must be an integer, got '1'"),
        ("12", TypeError, "inputs must be a sequence or array of integers, got '12'"),
        (b"12", TypeError, "inputs must be a sequence or array of integers"),
        (5, TypeError, "inputs must be a sequence or array of integers, got 5"),
        (None, TypeError, "inputs must be a sequence or array of integers, got None"),
        ({1, 2}, TypeError, "inputs must be a sequence or array"),
        ({1: 2}, TypeError, "inputs must be a sequence or array"),
        ((n for n in (1, 2)), TypeError, "inputs must be a sequence or array"),
        (np.ma.masked_array([1, 2], [True, False]), TypeError, "inputs must not be masked"),
        ([0, -1], ValueError, r"inputs\[1\] must lie in 0 .. 2\*\*64-1, got -1"),
        ([2**64], ValueError, r"inputs\[0\] must lie in 0 .. 2\*\*64-1, got 18446744073709551616"),
        (np.array([1.0]), TypeError, "inputs must have an integer dtype, got float64"),
        (np.array([True]), TypeError, "inputs must have an integer dtype, got bool"),
        (np.array([1], object), TypeError, "inputs must have an integer dtype, got object"),
        (np.array([3, -4]), ValueError, r"inputs\[1\] must lie in 0 .. 2\*\*64-1, got -4"),
        (np.ones((2, 2), np.uint64), ValueError, r"inputs must have one dimension, got shape"),
        (np.uint64(3), TypeError, "inputs must be a sequence or array of integers"),
    ],
)
def test_anything_else_is_refused(values: Any, error: type[Exception], message: str) -> None:
    """What would be truncated, wrapped or reshaped raises, with the index and the value."""
    with pytest.raises(error, match=message):
        as_inputs(values)
