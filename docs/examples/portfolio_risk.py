"""Value at risk of portfolios, by historical simulation over real stock returns.

The returns are monthly, of five stocks from 2000 to 2010, from the data that the package
vega_datasets ships (``pip install 'helixnb[examples]'``). A job is one portfolio: its weights.
"""

from __future__ import annotations

import anyio
import numpy as np

import helixnb

NAMES = ("AAPL", "AMZN", "GOOG", "IBM", "MSFT")
MONTHS = 67  # for which the data has all five


def monthly_returns():
    """Return simple returns, a row a month and a column a stock, for months with all five."""
    from vega_datasets import data

    prices = data.stocks().pivot(index="date", columns="symbol", values="price").dropna()
    table = prices[list(NAMES)].to_numpy()
    return table[1:] / table[:-1] - 1.0


@helixnb.kernel(
    inputs=f"float64[{len(NAMES)}]",
    returns="float64",
    params={"confidence": "float64"},
    shared={"returns": "float64[:,:]"},
    work=lambda _, inputs: MONTHS * inputs,
    ns_per_work=10.0,
)
def value_at_risk(holdings, confidence, returns):
    """Return the loss that was not exceeded in a share `confidence` of the months.

    A fraction of the portfolio's value; the order statistic at ``ceil(confidence * months) - 1``
    of the sorted losses.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError("confidence must lie between 0 and 1")
    months = returns.shape[0]
    losses = np.empty(months)
    for t in range(months):
        total = 0.0
        for k in range(len(holdings)):
            total += holdings[k] * returns[t, k]
        losses[t] = -total
    return np.sort(losses)[int(np.ceil(confidence * months)) - 1]


async def main():
    """Set single stocks beside an even portfolio."""
    value_at_risk.bind(returns=monthly_returns())
    portfolios = {name: np.eye(len(NAMES))[k] for k, name in enumerate(NAMES)}
    portfolios["even"] = np.full(len(NAMES), 1.0 / len(NAMES))
    async with helixnb.Router(kernels=[value_at_risk]) as router:
        jobs = [value_at_risk.job(each, confidence=0.95) for each in portfolios.values()]
        for name, outcome in zip(portfolios, await router.submit_many(jobs), strict=True):
            print(f"{name}: 95 % of months lost less than {outcome.value:.1%}")


if __name__ == "__main__":
    anyio.run(main)
