"""Warm-up: stopped between two forms, and quiet."""

from __future__ import annotations

from pathlib import Path

from support import python

STOPPED = """if True:
    from helixnb_kernels import HASH_MIX, warm_up
    stages = []
    stop = lambda: len(stages) == 2
    done = warm_up([HASH_MIX], parallel=False, progress=lambda *a: stages.append(a), stop=stop)
    print(done, len(stages))
"""
WHOLE = """if True:
    from helixnb_kernels import HASH_MIX, warm_up
    print(warm_up([HASH_MIX], parallel=False), HASH_MIX.solo(HASH_MIX.as_inputs([1]), 640, 1))
"""
QUIET = """if True:
    import logging
    records = []
    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.name)
    logging.basicConfig(level=logging.DEBUG, handlers=[Keep()])
    {before}
    from helixnb_kernels import HASH_MIX, warm_up
    warm_up([HASH_MIX], parallel=False)
    of_numba = sum(name.startswith("numba") for name in records)
    print(of_numba, logging.getLogger("numba").level)
"""


def test_it_stops_between_two_forms_and_goes_on_later(tmp_path: Path) -> None:
    """What was compiled is sound, and in the cache for the next start."""
    cache = {"HELIXNB_CACHE_DIR": str(tmp_path)}
    stopped = python("-c", STOPPED, env=cache)
    assert stopped.stdout.split() == ["False", "2"], stopped.stderr
    some = len(list(tmp_path.rglob("*.nbc")))
    whole = python("-c", WHOLE, env=cache)
    fresh = python("-c", WHOLE, env={"HELIXNB_CACHE_DIR": str(tmp_path / "fresh")})
    assert whole.stdout.split()[0] == "True", whole.stderr
    assert whole.stdout == fresh.stdout
    assert 0 < some < len(list((tmp_path / "fresh").rglob("*.nbc")))


def test_numbas_own_steps_stay_out_of_a_debug_log(tmp_path: Path) -> None:
    """The root logger is at DEBUG, and afterwards Numba's is as it was."""
    quiet = python("-c", QUIET.format(before=""), env={"HELIXNB_CACHE_DIR": str(tmp_path)})
    assert quiet.stdout.split() == ["0", "0"], quiet.stderr


def test_a_level_of_the_applications_own_counts(tmp_path: Path) -> None:
    """Who wants to see the steps of Numba sets its level."""
    before = "logging.getLogger('numba').setLevel(logging.DEBUG)"
    loud = python("-c", QUIET.format(before=before), env={"HELIXNB_CACHE_DIR": str(tmp_path)})
    lines, level = map(int, loud.stdout.split())
    assert lines > 100
    assert level == 10
