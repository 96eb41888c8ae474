"""Print the kernel table of docs/performance/index.md, measured in one run on this machine."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

# Machine code can be inspected only where it was compiled, so not out of a cache.
os.environ["HELIXNB_CACHE_DIR"] = tempfile.mkdtemp(prefix="helixnb-bench-")

from benchmarks.cases import KINDS, Columns
from benchmarks.timing import seconds

from helixnb_kernels import prime_count, threading_layer


def main() -> None:
    """Print Markdown."""
    print(
        "| kernel | jobs | straight loop | solo | batch kernel | gain | batch | batch, 2 threads |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for kind in KINDS:
        for jobs in (8, 64, 1_024):
            columns = Columns(kind, jobs)
            runs: list[Callable[[], Any]] = [
                columns.run_straight,
                columns.run_solo,
                columns.run_columns,
                functools.partial(columns.run_batch, 1),
                functools.partial(columns.run_batch, 2),
            ]
            straight, solo, alone, one, two = (seconds(run) / jobs * 1e6 for run in runs)
            if (kind, jobs) == ("HashMix", 1_024):
                mixed, mixed_us = columns, alone
            print(
                f"| {kind} | {jobs:,} | {straight:.2f} | {solo:.2f} | {alone:.3f} "
                f"| {straight / alone:.1f}x | {one:.2f} | {two:.2f} |"
            )
    print(f"\nMicroseconds a job; threading layer {threading_layer()}.\n")

    rounds = sum(max(cost // 64, 1) for cost in mixed.costs) / 1_024
    print(f"HashMix, 1,024 jobs of {rounds:.0f} rounds on average:")
    print(f"- {mixed_us / rounds * 1e3:.3f} ns a round and job")
    batch: Any = mixed.kernel.serial
    code = batch.inspect_asm(batch.signatures[0])
    for name in ("vpmullq", "vpmuludq", "imul"):
        print(f"- {name}: {len(re.findall(name, code))} in the code of the batch")

    print("\n| count of primes up to 10^8 | ms |\n|---|---|")
    for threads in (1, 2):
        taken = seconds(functools.partial(prime_count, 10**8, threads=threads))
        print(f"| prime_count, {threads} threads | {taken * 1e3:.1f} |")
    if shutil.which("primesieve"):
        for threads in (1, 2):
            command = ["primesieve", "1e8", "--quiet", f"--threads={threads}"]
            run = functools.partial(subprocess.run, command, check=True, capture_output=True)
            taken = seconds(run)
            print(f"| primesieve, {threads} threads, its process included | {taken * 1e3:.1f} |")


if __name__ == "__main__":
    main()
