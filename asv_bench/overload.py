"""Print what becomes of a mix under more load than the machine can take, by dispatcher.

``python overload.py --mix heavy``; both mixes by default. Each row is a process of its own: one
event loop, which starts a task for each job when it is due and measures from there. All rows of an
offered load have the same jobs at the same times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overload_runs import CLIENTS, KERNELS, LIMITS, PEAK, PERIOD_S, ROWS, THREADS, Case, Row
from tables import markdown

from helixnb.workload import calibrate

MIXES = ("heavy", "light")
FACTORS = (0.5, 1.0, 2.0, 4.0)
LIGHT_RATES = (6_000.0, 12_000.0, 24_000.0, 48_000.0, 96_000.0)
"""Offered jobs a second: the heavy mix's over its capacity, the light mix's as they are."""

LIGHT_BURSTS = 12_000.0
CAPACITY_S = 3.0
CHILD_S = 600.0
HEADINGS = (
    *("offered", "dispatcher", "offered/s", "in budget/s", "completed/s", "p50 ms", "p95 ms"),
    *(
        "p99 ms",
        "completed in budget",
        "drops/s by reason",
        "unanswered/s",
        "lag p99 ms",
        "stalled",
    ),
    "loop CPU",
)


def run_child(case: Case) -> Any:
    """Run a case in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "overload_runs.py", json.dumps(dataclasses.asdict(case))],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=CHILD_S,
    )
    if done.returncode:
        raise SystemExit(f"{case.dispatcher} at {case.rate:,.0f}/s failed; see above")
    return json.loads(done.stdout.splitlines()[-1])


def say(text: str) -> None:
    """Say how far it is, beside what is printed."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An offered load, and what to call it."""

    name: str
    rate: float
    bursts: bool = False


def offers(mix: str, capacity: float, rates: list[float] | None) -> Iterator[Offer]:
    """Give the offered loads of a mix, the bursty one last; or those of the given rates."""
    if rates is not None:
        for rate in rates:
            yield Offer(name=f"{rate:,.0f}/s ({rate / capacity:.1f}x)", rate=rate)
    elif mix == "heavy":
        for factor in FACTORS:
            yield Offer(name=f"{factor:g}x", rate=factor * capacity)
        yield Offer(name=f"1x, bursts of {PEAK:g}x", rate=capacity, bursts=True)
    else:
        for rate in LIGHT_RATES:
            yield Offer(name=f"{rate:,.0f}/s ({rate / capacity:.1f}x)", rate=rate)
        yield Offer(
            name=f"{LIGHT_BURSTS:,.0f}/s, bursts of {PEAK * LIGHT_BURSTS:,.0f}/s",
            rate=LIGHT_BURSTS,
            bursts=True,
        )


def measure_mix(mix: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the capacity and all rows; print the table, and return both."""
    case = Case(
        mix=mix,
        dispatcher="",
        rate=0.0,
        bursts=False,
        seed=options.seed,
        ns_per_cost=calibrate() if mix == "heavy" else {},
        warm_up_s=1.0,
        seconds=CAPACITY_S,
        drain_s=options.drain,
    )
    limits = {}
    for name in LIMITS:
        limits[name] = run_child(dataclasses.replace(case, dispatcher=name))
        say(f"{mix}: capacity of {name}: {limits[name]:,.0f}/s")
    best = max(limits, key=lambda name: limits[name])
    capacity = limits[best] if options.capacity is None else limits[options.capacity]
    dispatchers = [name for name in ROWS if name in options.dispatchers]
    loads = list(offers(mix, capacity, options.rates))
    rounds: dict[tuple[str, str], list[Row]] = {}
    for each in range(options.rounds):
        for offer in loads:
            for name in dispatchers[:: -1 if each % 2 else 1]:
                row = run_child(
                    dataclasses.replace(
                        case,
                        dispatcher=name,
                        rate=offer.rate,
                        bursts=offer.bursts,
                        seconds=options.seconds,
                        seed=case.seed + each,
                    )
                )
                rounds.setdefault((offer.name, name), []).append(Row(**row))
                say(f"{mix}, {offer.name}, {name}: {row['in_budget']:,.1f}/s in budget")
    rows = {key: median_row(seen) for key, seen in rounds.items()}
    print_table(mix, rows, limits, case, options)
    return {
        "mix": mix,
        "capacity": capacity,
        "limits": limits,
        "seconds": options.seconds,
        "drain_s": options.drain,
        "rounds": options.rounds,
        "seed": options.seed,
        "ns_per_cost": case.ns_per_cost,
        "rows": [
            {"offer": offer, "dispatcher": name, **dataclasses.asdict(row)}
            for (offer, name), row in rows.items()
        ],
    }


def median_row(rows: list[Row]) -> Row:
    """Return the row in the middle by answers within budget, the lower of two."""
    return sorted(rows, key=lambda row: row.in_budget)[(len(rows) - 1) // 2]


def rate(number: float) -> str:
    """Write a rate, with a digit behind the point where that means something."""
    return f"{number:,.1f}" if 0 < number < 100 else f"{number:,.0f}"


def cells(offer: str, name: str, row: Row) -> tuple[str, ...]:
    """Return the cells of a row."""
    drops = ", ".join(f"{reason} {rate(count)}" for reason, count in row.dropped.items())
    latencies = (row.p50_ms, row.p95_ms, row.p99_ms)
    return (
        offer,
        f"executor, {THREADS} threads" if name == "executor" else name,
        *(rate(number) for number in (row.offered, row.in_budget, row.completed)),
        *("-" if ms is None else f"{ms:,.1f}" for ms in latencies),
        "-" if row.in_budget_share is None else f"{row.in_budget_share:.1%}",
        drops or "-",
        rate(row.unanswered),
        f"{row.lag_p99_ms:,.1f}",
        f"{row.stalled_share:.0%}",
        f"{row.loop_cpu:.0%}",
    )


def print_table(
    mix: str,
    rows: dict[tuple[str, str], Row],
    limits: dict[str, float],
    case: Case,
    options: argparse.Namespace,
) -> None:
    """Print the table in Markdown, and how it was measured."""
    left = (0, 1, HEADINGS.index("drops/s by reason"))
    print(f"\n{mix.capitalize()} mix, {THREADS} cores\n")
    print(markdown(HEADINGS, [cells(*key, row) for key, row in rows.items()], left))
    of_limits = ", ".join(f"{name} {rate(each)}" for name, each in limits.items())
    base = "the highest" if options.capacity is None else options.capacity
    print(
        f"\nCapacity is {base} of: {of_limits} answers/s, each with {CLIENTS} clients that send "
        f"their next job, without a budget, when they have an answer."
    )
    if case.ns_per_cost:
        sized = ", ".join(f"{kind} {ns:.3g}" for kind, ns in case.ns_per_cost.items())
        print(f"Jobs are sized for 2 to 20 ms solo by ns a unit of cost: {sized}.")
    print(
        f"Latency counts from when a job was due. {case.warm_up_s:g} s of arrivals, then "
        f"{options.seconds:g} s that count, then up to {options.drain:g} s for late answers; "
        f"bursts take 1/{PEAK:g} of each {PERIOD_S:g} s. Median of {options.rounds} by answers "
        "within budget.\n"
        "Stalled: the share of the time in which a 5 ms heartbeat was overdue by more than 5 ms. "
        "An idle asyncio loop wakes up to 1 ms late, which counts everywhere."
        f"\nAnswers: {sum(row.checked for row in rows.values()):,} compared with those of the "
        f"kernels ({', '.join(kernel.name for kernel in KERNELS[mix])}) run solo, all the same."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mix", choices=MIXES, help="one mix only")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time (%(default)s)")
    parser.add_argument(
        "--drain", type=float, default=2.0, help="seconds for late answers (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=1, help="runs of each row (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of jobs and arrivals (%(default)s)")
    parser.add_argument("--capacity", choices=LIMITS, help="what 1x is; by default the highest")
    parser.add_argument(
        "--dispatchers", nargs="+", choices=ROWS, default=ROWS, help="some rows only"
    )
    parser.add_argument(
        "--rates", nargs="+", type=float, help="offered jobs a second instead", metavar="RATE"
    )
    parser.add_argument("--json", type=Path, help="write the rows to a file too", metavar="FILE")
    options = parser.parse_args()
    results = [measure_mix(mix, options) for mix in MIXES if options.mix in (None, mix)]
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
