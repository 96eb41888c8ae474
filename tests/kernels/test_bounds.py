"""Indices that are checked where it was asked for."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest
from numba import prange
from support import python

import helixnb
from helixnb import Router, RouterConfig
from helixnb.testing import ScriptedRouter
from helixnb_kernels import warm_up

CONFIG = RouterConfig(cpu_parallelism=2, parallel_kernels="never")


def picked(name: str, **options: Any) -> Any:
    """Return a kernel that reads its last input's element of its inputs."""

    def pick(x: Any) -> Any:
        return x[int(x[len(x) - 1])]

    return helixnb.kernel(inputs="float64[:]", returns="float64", name=name, **options)(pick)


CHECKED = picked("checked", boundscheck=True)
LEFT = picked("left", boundscheck=False)
SCRIPTED = picked("scripted")


@pytest.mark.anyio
async def test_an_index_out_of_range_fails_its_job_alone() -> None:
    """Alone and in batches; the others have their answers."""
    rows = [[5.0, 6.0, float(i)] for i in range(6)]
    async with Router(CONFIG, kernels=[CHECKED]) as router:
        one = await router.submit(CHECKED.job([5.0, 6.0, 10.0]))
        many = list(await router.submit_many([CHECKED.job(row) for row in rows]))
    assert isinstance(one.error, IndexError)
    assert [each.value_or(None) for each in many] == [5.0, 6.0, 2.0, None, None, None]
    assert all(isinstance(each.error, IndexError) for each in many[3:])


def test_a_hand_written_batch_form_runs_on_one_thread_then() -> None:
    """Numba loses what a parallel loop raises, and all that comes after it in that thread."""
    batched: Any = picked("batched", boundscheck=True)

    @batched.batch()  # type: ignore[untyped-decorator]
    def batch(inputs: Any, offsets: Any, parts: Any, failed: Any, out: Any) -> None:
        for part in prange(len(parts) - 1):
            for i in range(parts[part], parts[part + 1]):
                out[i] = inputs[int(inputs[offsets[i + 1] - 1])]

    assert batched.parallel is None
    warm_up([batched])
    good, wrong = np.array([5.0, 1.0]), np.array([5.0, 40.0])
    assert batched.run_batch([good, good], [1, 1], [0, 1]).values == [1.0, 1.0]
    with pytest.raises(IndexError):
        batched.run_batch([good, wrong], [1, 1], [0, 1], threads=2)


def test_testing_checks_what_is_still_to_be_compiled() -> None:
    """Unless the kernel says not to, and not what was compiled before."""

    async def scripted() -> None:
        async with ScriptedRouter(kernels=[SCRIPTED, LEFT]) as router:
            outcome = await router.submit(SCRIPTED.job([5.0, 6.0, 10.0]))
            assert isinstance(outcome.error, IndexError)
            assert (await router.submit(SCRIPTED.job([5.0, 0.0]))).value == 5.0

    anyio.run(scripted)
    assert LEFT.needs[0].targetoptions["boundscheck"] is False
    plain = picked("plain")
    warm_up([plain], parallel=False)
    plain.check_bounds()
    assert plain.needs[0].targetoptions["boundscheck"] is None


SOURCE = """
import numba
import numpy as np
import helixnb

helped = numba.njit(lambda x, i: x[i])

@helixnb.kernel(inputs="float64[:]", returns="float64")
def pick(x):
    return helped(x, int(x[len(x) - 1]))

try:
    print(pick(np.arange(10.0)[:6]), pick(np.array([7.0] * 9)[:6]))
except IndexError:
    print("IndexError")
"""


def test_what_is_checked_has_a_cache_of_its_own() -> None:
    """Whichever comes first; and Numba's own variable is for whatever a kernel calls, too."""
    numbers = np.array([1.0, 4.0, 3.0, 2.0, 105.0])
    warm_up([CHECKED], parallel=False)
    assert picked("unchecked")(numbers[:2]) == 105.0
    with pytest.raises(IndexError):
        picked("again", boundscheck=True)(numbers[:2])
    printed = [
        python("-c", SOURCE, env={"NUMBA_BOUNDSCHECK": value}).stdout.strip()
        for value in ("0", "1")
    ]
    assert printed == ["5.0 7.0", "IndexError"]
