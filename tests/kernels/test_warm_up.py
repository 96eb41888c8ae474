"""Warm-up: stopped between two forms, and quiet."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from support import python

from helixnb_kernels import kernel, warm_up

KERNEL = """
from helixnb_kernels import kernel, warm_up
@kernel(returns="uint64")
def added(inputs, job_id):
    return inputs[0] + job_id
"""
STOPPED = f"""{KERNEL}
stages = []
stop = lambda: len(stages) == 2
done = warm_up([added], parallel=False, progress=lambda *a: stages.append(a), stop=stop)
print(done, len(stages))
"""
WHOLE = f"""{KERNEL}
done = warm_up([added], parallel=False)
row = added.as_inputs([2])
print(done, added.solo_call(row, 1, 5)(), *added.run_batch([row], [1], [6]).values)
"""


def test_it_stops_between_two_forms_and_goes_on_later(tmp_path: Path) -> None:
    """What was compiled is sound, and in the cache for the next start."""
    cache = {"HELIXNB_CACHE_DIR": str(tmp_path)}
    stopped = python("-c", STOPPED, env=cache)
    assert stopped.stdout.split() == ["False", "2"], stopped.stderr
    some = len(list(tmp_path.rglob("*.nbc")))
    whole = python("-c", WHOLE, env=cache)
    assert whole.stdout.split() == ["True", "7", "8"], whole.stderr
    assert 0 < some < len(list(tmp_path.rglob("*.nbc")))


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG])
def test_numbas_own_steps_in_a_debug_log(level: int, caplog: pytest.LogCaptureFixture) -> None:
    """They stay out of it, unless the application has set a level for Numba; that stays as it was.

    The root logger is at DEBUG.
    """

    @kernel(inputs="int64[:]", returns="int64")
    def added(inputs: Any) -> Any:
        return inputs[0] + level  # so that none is read from the disk cache

    caplog.set_level(logging.DEBUG)
    caplog.set_level(level, "numba")
    warm_up([added], parallel=False)
    assert logging.getLogger("numba").level == level
    of_numba = sum(record.name.startswith("numba") for record in caplog.records)
    assert of_numba > 100 if level else of_numba == 0
