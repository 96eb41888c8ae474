"""Score feature rows by logistic regression, and swap the model's weights under traffic."""

from __future__ import annotations

import anyio
import numpy as np

import helixnb

FEATURES = 16


@helixnb.kernel(
    inputs=f"float64[{FEATURES}]",
    returns="float64",
    shared={"weights": f"float64[{FEATURES}]", "intercept": "float64[1]"},
    work=lambda _, inputs: inputs,
    ns_per_work=1.0,
)
def score(features, weights, intercept):
    """Return the probability of the positive class, 0 to 1, without overflow for any row."""
    z = intercept[0]
    for j in range(len(features)):
        z += features[j] * weights[j]
    if z >= 0.0:
        return 1.0 / (1.0 + np.exp(-z))
    e = np.exp(z)
    return e / (1.0 + e)


async def main():
    """Score a thousand rows with one model, then with the next."""
    draw = np.random.default_rng(7)
    rows = draw.normal(size=(1_000, FEATURES))
    score.bind(weights=draw.normal(size=FEATURES), intercept=[0.1])
    async with helixnb.Router(kernels=[score]) as router:
        for version in (1, 2):
            outcomes = await router.submit_many([score.job(row) for row in rows])
            scores = [outcome.value_or(np.nan) for outcome in outcomes]
            print(f"model {version}: mean score {np.nanmean(scores):.4f}")
            score.bind(weights=draw.normal(size=FEATURES))


if __name__ == "__main__":
    anyio.run(main)
