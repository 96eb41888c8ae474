"""What goes to another process: outcomes, statistics, and what is in them."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from support import LARGE, PICKY, Picky, job, router

from helixnb import (
    BlockOutcomes,
    JobDropped,
    JobFailed,
    Kernel,
    Outcome,
    Outcomes,
    Router,
    Status,
    StrategyStats,
)

pytestmark = pytest.mark.anyio

FIELDS = [each.name for each in dataclasses.fields(Outcome) if each.name[0] != "_"]


class Needy(Exception):
    """Takes other arguments than it keeps, as many libraries' errors do."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}: {detail}")


def same(one: Any, other: Any) -> None:
    """Check two outcomes field by field."""
    for name in FIELDS:
        if name != "error":
            assert getattr(one, name) == getattr(other, name)
            assert type(getattr(one, name)) is type(getattr(other, name))


def travelled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


async def outcome_of(r: Router, raise_: Any) -> Outcome:
    return await r.run(raise_, compute_cost=LARGE)


def raises(error: BaseException) -> Any:
    def function() -> None:
        raise error

    return function


async def test_outcomes_travel() -> None:
    """Whatever became of them; an error arrives with where it was raised as a note."""

    class Local(Exception):
        pass

    odd = ValueError("odd")
    odd.lock = threading.Lock()  # type: ignore[attr-defined]
    async with router(PICKY) as r:
        completed = await r.submit(job(1, "HashMix", [1, 2]))
        (dropped,) = [await r.submit(job(2, latency_budget_ms=3.5, compute_cost=2**63))]
        failed = await r.submit(job(3, "Picky"))
        others = [
            await outcome_of(r, raises(each))
            for each in (Needy(3, detail="no"), Local("here"), odd, KeyError("x"))
        ]
        arrays = await r.run(np.arange, 3.0, compute_cost=LARGE)
    for outcome in (completed, dropped, failed, *others):
        same(travelled(outcome), outcome)
        same(copy.deepcopy(outcome), outcome)
    assert travelled(completed).value == completed.value
    assert dropped.status is Status.DROPPED
    with pytest.raises(JobDropped, match=dropped.reason):
        travelled(dropped).value  # noqa: B018
    with pytest.raises(Picky, match="job 3") as caught:
        travelled(failed).value  # noqa: B018
    assert "in _picky" in caught.value.__notes__[0]
    assert failed.error is not None
    assert not hasattr(failed.error, "__notes__")
    assert copy.deepcopy(failed).error is failed.error
    texts = ["Needy: code 3: no", "Local: here", "ValueError: odd"]
    for outcome, text in zip(others[:3], texts, strict=True):
        error = travelled(outcome).error
        assert type(error) is JobFailed
        assert str(error).endswith(text)
    assert type(travelled(others[3]).error) is KeyError
    again = copy.deepcopy(arrays)
    assert np.array_equal(again.value, arrays.value)
    assert again.value is not arrays.value
    assert np.array_equal(travelled(arrays).value, arrays.value)


async def test_outcomes_by_the_thousand_travel() -> None:
    async with router(PICKY) as r:
        outcomes = await r.submit_many([job(i, "Picky") for i in range(7)])
    for sent in (travelled(outcomes), copy.deepcopy(outcomes)):
        assert isinstance(sent, Outcomes)
        assert isinstance(sent["Picky"], BlockOutcomes)
        for one, other in zip(sent, outcomes, strict=True):
            same(one, other)
        assert [type(each) for each in sent["Picky"].errors.values()] == [Picky] * 3


async def test_statistics_travel() -> None:
    """As they are, as plain dicts, and as JSON."""
    async with router() as r:
        await r.submit(job(1))
        stats = r.stats()
    for again in (travelled(stats), copy.deepcopy(stats)):
        assert again == stats
    assert dataclasses.asdict(stats)["by_strategy"].keys() == stats.by_strategy.keys()
    assert isinstance(next(iter(stats.by_strategy.values())), StrategyStats)
    assert json.loads(json.dumps(stats.as_dict(), allow_nan=False))["submitted"] == 1


async def test_an_explanation_travels() -> None:
    async with router() as r:
        why = r.explain(job(1))
    assert travelled(why) == why
    assert copy.deepcopy(why) == why
    record = json.loads(json.dumps(why.as_dict(), allow_nan=False))
    assert record["decision"]["strategy"] == why.decision.strategy
    assert record["load"]["cpu_left"] is None
    assert record["load"]["hop_us"] == why.load.hop_us


async def test_a_kernel_of_plain_python_travels_by_its_name() -> None:
    assert travelled(PICKY) is PICKY
    with pytest.raises(pickle.PicklingError, match="kernel Made can't be pickled: it travels by"):
        pickle.dumps(Kernel(name="Made", solo=lambda inputs, cost, job_id: 0))
