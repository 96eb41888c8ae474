"""Every answer of the original router, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
from support import original

from helixnb_kernels import BUILT_IN, Kernel, warm_up

KINDS = {kernel.name: kernel for kernel in BUILT_IN}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    warm_up(BUILT_IN)


def run(kernel: Kernel, rows: list[dict[str, Any]], threads: int) -> list[Any]:
    return kernel.run_batch(
        [kernel.as_inputs(row["inputs"]) for row in rows],
        [row["compute_cost"] for row in rows],
        [row["id"] for row in rows],
        threads=threads,
    ).values


def test_the_data_is_whole() -> None:
    """There are 600 rows, of all three kinds."""
    assert len(original()) == 600
    assert {row["kind"] for row in original()} == set(KINDS)


def test_solo_answers() -> None:
    """Each of the 600 jobs gives the original's answer when it runs alone."""
    for row in original():
        kernel = KINDS[row["kind"]]
        inputs = kernel.as_inputs(row["inputs"])
        answer = kernel.solo_call(inputs, row["compute_cost"], row["id"])()
        assert type(answer) is type(row["answer"])
        assert answer == row["answer"], row["id"]


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("size", [1, 2, 7, 64, 600])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_batched_answers(kind: str, size: int, threads: int) -> None:
    """Each gives it in batches of any size too, on one thread and several."""
    rows = [row for row in original() if row["kind"] == kind]
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        assert run(KINDS[kind], part, threads) == [row["answer"] for row in part]
