"""The example kernels, against NumPy and SciPy."""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import special, stats
from support import EXAMPLES, Always, check_balanced, numpy_price, python, router

from helixnb import Router, Status, Strategy

RAN = (Strategy.INLINE, Strategy.SPAWN, Strategy.CPU_POOL, Strategy.BATCH)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_run(name: str) -> None:
    """Each is a program that prints its results."""
    if name == "portfolio_risk":
        pytest.importorskip("vega_datasets")
    # A service goes on until it is told to end; so it has a form that asks itself once.
    arguments = ["--check"] if name == "service" else []
    done = python("-W", "default", str(EXAMPLES / f"{name}.py"), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", RAN)
async def test_option_prices(strategy: Strategy) -> None:
    """Prices lie within five standard errors of Black and Scholes, and are those of NumPy."""
    example = load("option_pricing")
    options = [(100.0, strike, 0.02, 0.25, 0.5) for strike in (80.0, 100.0, 120.0)]
    async with router(example.european_call, policy=Always(strategy)) as r:
        jobs = [
            example.european_call.job(option, id=i, compute_cost=20_000)
            for i, option in enumerate(options)
        ]
        outcomes = await r.submit_many(jobs)
    for i, (option, outcome) in enumerate(zip(options, outcomes, strict=True)):
        price, error = outcome.value
        assert abs(price - black_scholes(*option)) < 5 * error
        np.testing.assert_allclose([price, error], numpy_price(option, 20_000, i), rtol=1e-9)
    check_balanced(r.stats())


def black_scholes(s: float, k: float, r: float, v: float, t: float) -> float:
    d1 = (math.log(s / k) + (r + v * v / 2) * t) / (v * math.sqrt(t))
    price = s * stats.norm.cdf(d1)
    return float(price - k * math.exp(-r * t) * stats.norm.cdf(d1 - v * math.sqrt(t)))


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", RAN)
async def test_scores(strategy: Strategy) -> None:
    """Scores are SciPy's logistic function, for extreme rows too."""
    example = load("scoring")
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(60, example.FEATURES)) * 50
    weights = draw.normal(size=example.FEATURES)
    example.score.bind(weights=weights, intercept=[0.3])
    async with router(example.score, policy=Always(strategy)) as r:
        outcomes = await r.submit_many([example.score.job(row) for row in rows])
    expected = special.expit(rows @ weights + 0.3)
    np.testing.assert_allclose([outcome.value for outcome in outcomes], expected, rtol=1e-9)


@pytest.mark.anyio
async def test_weights_swapped_under_load() -> None:
    """While models are swapped, every score is that of one model, and no job fails."""
    example = load("scoring")
    row = np.ones(example.FEATURES)

    def bind(k: int) -> None:  # for every k the same score, unless two models are mixed
        example.score.bind(
            weights=np.full(example.FEATURES, float(k)), intercept=[0.5 - k * example.FEATURES]
        )

    bind(0)
    expected = float(special.expit(0.5))
    strategies = Always(Strategy.BATCH)
    async with router(example.score, policy=strategies, batch_max_jobs=32) as r:
        for k in range(1, 80):
            strategies.strategy = RAN[k % 4]
            tickets = [r.submit_soon(example.score.job(row)) for _ in range(40)]
            bind(k)
            outcomes = [await ticket.wait() for ticket in tickets]
            assert {outcome.status for outcome in outcomes} == {Status.COMPLETED}
            assert {outcome.value for outcome in outcomes} == {expected}
    check_balanced(r.stats())


@pytest.mark.anyio
@pytest.mark.parametrize("strategy", RAN)
async def test_value_at_risk(strategy: Strategy) -> None:
    """On real returns the loss is NumPy's order statistic; a wrong confidence fails its own job."""
    pytest.importorskip("vega_datasets")
    example = load("portfolio_risk")
    returns = example.monthly_returns()
    assert returns.shape[0] > 60
    assert not np.isnan(returns).any()
    example.value_at_risk.bind(returns=returns)
    draw = np.random.default_rng(2)
    portfolios = draw.dirichlet(np.ones(returns.shape[1]), size=30)
    async with router(example.value_at_risk, policy=Always(strategy)) as r:
        jobs: list[Any] = [example.value_at_risk.job(each, confidence=0.9) for each in portfolios]
        jobs.insert(7, example.value_at_risk.job(portfolios[0], confidence=2.0))
        outcomes = list(await r.submit_many(jobs))
    wrong = outcomes.pop(7)
    assert wrong.status is Status.FAILED
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        _ = wrong.value
    losses = np.quantile(-portfolios @ returns.T, 0.9, axis=1, method="inverted_cdf")
    np.testing.assert_allclose([outcome.value for outcome in outcomes], losses, rtol=1e-12)
    check_balanced(r.stats())


@pytest.mark.anyio
async def test_a_job_must_give_what_its_kernel_computes_with() -> None:
    """A cost is filled in from `work`, but not where the kernel reads it."""
    example = load("option_pricing")
    with pytest.raises(ValueError, match="computes with compute_cost, so it must be given"):
        example.european_call.job([1.0] * 5)
    scoring = load("scoring")
    job = scoring.score.job([0.0] * scoring.FEATURES)
    assert (job.kind, job.compute_cost) == ("score", scoring.FEATURES)
    assert scoring.score.job([0.0] * scoring.FEATURES).id == job.id + 1
    scoring.score.bind(weights=np.zeros(scoring.FEATURES), intercept=[0.0])
    async with Router(kernels=[scoring.score]) as r:
        with pytest.raises(ValueError, match="inputs must have 16 elements, got 1"):
            await r.submit(scoring.score.job([0.0]))
        with pytest.raises(ValueError, match="params must be none, got depth"):
            await r.submit(scoring.score.job([0.0] * 16, depth=3))
