"""Print how well a live router with `AdaptivePolicy` predicts, and how it follows what changes.

``python learning.py``, about three minutes; ``--only`` for some of the tables. The configuration is
the default, but for the setting that a table is about.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, median, quantiles

import anyio
from learning_load import (
    BATCH_CLIENTS,
    BATCHED_NS,
    CLIENTS,
    POTENTIALS,
    SETTLING_S,
    Shared,
    batching,
    beside,
    capacity,
)
from learning_runs import (
    AFTER_S,
    BUCKET_S,
    BUDGET_MS,
    COMPARED,
    DISTURBANCE,
    DISTURBED_S,
    KERNELS,
    LATEST,
    LEARNING_CLIENTS,
    LEARNT_FROM,
    RATE,
    Bucket,
    Change,
    chain_ns,
    disturbed,
    predictions,
    set_factor,
    tripled,
)
from tables import markdown

from helixnb import RouterConfig
from helixnb.workload import calibrate
from helixnb_kernels import warm_up

AFTER = (10, 20, 30, 50, 100, 200, 500)
"""Jobs after the change at which a median is shown."""

CHANGE_JOBS = 500
CHANGE_CLIENTS = (1, 16)
SHOWN_S = (-0.5, 5.0)
"""What is shown around a disturbance, in seconds from its beginning."""


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table below its title."""
    print(f"\n{title}\n\n{markdown(headings, rows)}", flush=True)


def counts(counter: Counter[str]) -> str:
    """Write what a counter holds."""
    return ", ".join(f"{name} {counter[name]}" for name in sorted(counter)) or "-"


def show_predictions(options: argparse.Namespace) -> None:
    """Show predicted over measured time, by kind."""
    found = anyio.run(predictions, options.seed)
    rows = []
    for kind, each in found.items():
        deciles = quantiles(each.ratios, n=10, method="inclusive")
        rows.append(
            (
                kind,
                f"{max(each.works) / min(each.works):.0f}x",
                counts(each.routed),
                f"{median(each.ratios):.2f}",
                f"{deciles[0]:.2f}",
                f"{deciles[-1]:.2f}",
                "yes" if abs(median(each.ratios) - 1) <= 0.25 else "NO",
            )
        )
    print_table(
        f"Predicted over measured CPU time: {COMPARED} jobs a kind, after {LEARNT_FROM} of it "
        f"from {LEARNING_CLIENTS} clients, all kinds shuffled",
        ("kind", "work varies", "learnt from", "median", "10 %", "90 %", "median within 25 %"),
        rows,
    )


def show_change(options: argparse.Namespace) -> None:
    """Show how predictions follow a cost that triples."""

    def cells(clients: int, each: Change) -> tuple[str, ...]:
        return (
            str(clients),
            counts(each.routed),
            f"{each.before:.2f}",
            *(f"{each.medians[jobs - 1]:.2f}" for jobs in AFTER),
            "never" if each.settled is None else f"{each.settled}",
        )

    rows = [
        cells(clients, anyio.run(tripled, clients, CHANGE_JOBS, options.seed + each))
        for clients in CHANGE_CLIENTS
        for each in range(options.rounds)
    ]
    print_table(
        f"The true cost triples: median of predicted over actual time of the latest {LATEST} jobs",
        (
            *("clients", "ran", "before"),
            *(f"after {jobs}" for jobs in AFTER),
            "within 25 % for good after",
        ),
        rows,
    )


def show_disturbance(options: argparse.Namespace) -> None:
    """Show what becomes of jobs around a disturbance."""
    step_ns = chain_ns()
    found = [anyio.run(disturbed, step_ns, options.seed + each) for each in range(options.rounds)]
    sums: dict[int, Bucket] = defaultdict(Bucket)
    for disturbance in found:
        for key, bucket in disturbance.buckets.items():
            sums[key].merge(bucket)
    rows = [
        (
            f"{key * BUCKET_S:+.2f}",
            *(str(number) for number in (each.offered, each.admitted, each.in_budget)),
            counts(each.dropped),
        )
        for key, each in sorted(sums.items())
        if SHOWN_S[0] <= key * BUCKET_S < SHOWN_S[1]
    ]
    print_table(
        f"Jobs of 1 to 4 ms, {RATE:g} a second, budget {BUDGET_MS:g} ms, take {DISTURBANCE} times "
        f"as long from 0 to {DISTURBED_S:g} s: sums over {options.rounds} of them, a router each",
        ("due, s", "offered", "admitted", "in budget", "dropped"),
        rows,
    )

    def back(seen: Iterable[float | None]) -> str:
        return ", ".join("never" if each is None else f"{each:.2f}" for each in seen)

    print(
        f"\nAdmitted before: {fmean(each.admitted_before for each in found):.0%}. At least 90 % of "
        f"that again for good, in seconds after the end of each: admissions "
        f"{back(each.back_s for each in found)}; answers within budget "
        f'{back(each.answers_back_s for each in found)}. "Never" is not within {AFTER_S:g} s.'
    )


def show_other_process(options: argparse.Namespace) -> None:
    """Show what another process's use of the CPU does, heeded or not."""
    ns_per_cost = calibrate()
    most = anyio.run(capacity, ns_per_cost, 3.0, options.seed)
    rate = options.load * most
    cases = [(burns, heeds) for burns in (False, True) for heeds in (True, False)]
    found: dict[tuple[bool, bool], list[Shared]] = defaultdict(list)
    for each in range(options.rounds):
        for burns, heeds in cases[:: -1 if each % 2 else 1]:
            seed = options.seed + each
            run = functools.partial(beside, burns=burns, heeds=heeds)
            row = anyio.run(run, ns_per_cost, rate, options.seconds, seed)
            found[burns, heeds].append(row)

    def cells(seen: list[Shared]) -> tuple[str, ...]:
        row = sorted(seen, key=lambda each: each.in_budget)[(len(seen) - 1) // 2]
        left = [cpus for cpus in row.cpu_left if cpus is not None]
        rates = [each.in_budget for each in seen]
        return (
            "yes" if row.burns else "no",
            str(row.heeds),
            f"{row.offered:.0f}",
            f"{row.in_budget:.0f}",
            f"{min(rates):.0f} to {max(rates):.0f}",
            f"{row.in_budget_share:.1%}",
            ", ".join(f"{name} {jobs:.1f}" for name, jobs in row.dropped.items()) or "-",
            f"{fmean(left):.2f} ({min(left):.2f} to {max(left):.2f})" if left else "-",
        )

    rows = [cells(found[case]) for case in cases]
    print_table(
        f"The heavy mix at {options.load:g}x of {most:.0f} answers/s, what {CLIENTS} clients get "
        "without budgets; another process burns a core, or not",
        (
            "burner",
            "heed_other_cpu_use",
            "offered/s",
            "in budget/s",
            "of all rounds",
            "completed in budget",
            "drops/s by reason",
            "cpu_left",
        ),
        rows,
    )
    print(
        f"\n{options.seconds:g} s that count after {SETTLING_S:g} s that don't; "
        f"the median of {options.rounds} rounds by answers within budget."
    )


def show_batching(options: argparse.Namespace) -> None:
    """Show which kind is batched, second by second."""
    ns_per_cost = calibrate()
    shown = anyio.run(batching, ns_per_cost, options.batch_seconds, options.seed)
    names = ("batch", "probe", "cpu_pool", "spawn", "inline")
    rows = [
        (
            str(i),
            *(
                cell
                for kind in POTENTIALS
                for cell in (
                    " / ".join(str(each.decided[kind][name]) for name in names),
                    f"{each.gain[kind]:.2f}",
                )
            ),
            str(each.batches),
            f"{each.batched_jobs / max(each.batches, 1):.1f}",
        )
        for i, each in enumerate(shown, 1)
    ]
    print_table(
        f"Jobs of {BATCHED_NS / 1e6:g} ms, {BATCH_CLIENTS} clients a kind, without budgets; "
        f"decided: {' / '.join(names)}",
        (
            "second",
            *(
                cell
                for kind, potential in POTENTIALS.items()
                for cell in (f"{kind}, scaling_potential {potential:g}", "gain learnt")
            ),
            "batches",
            "jobs a batch",
        ),
        rows,
    )


TABLES = {
    "predictions": show_predictions,
    "change": show_change,
    "disturbance": show_disturbance,
    "process": show_other_process,
    "batching": show_batching,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, help="some tables")
    parser.add_argument("--seed", type=int, default=1, help="of jobs and arrivals (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of all but predictions and batches (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="measured time beside a process (%(default)s)"
    )
    parser.add_argument(
        "--load", type=float, default=1.0, help="offered there, over capacity (%(default)s)"
    )
    parser.add_argument(
        "--batch-seconds", type=int, default=14, help="of batches; they are probed each 10 s"
    )
    options = parser.parse_args()
    set_factor(1)
    warm_up(KERNELS)
    print(f"{RouterConfig().cpu_parallelism} slots, seed {options.seed}")
    for name, show in TABLES.items():
        if name in options.only:
            show(options)


if __name__ == "__main__":
    main()
