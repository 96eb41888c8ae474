"""What a new process waits for: the import, and a router that opens with compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROUNDS = 11
STATEMENT = """
import time
began = time.perf_counter()
import {}
print(time.perf_counter() - began)
"""
OPENING = """
import time
import anyio
from helixnb import Router

async def main():
    began = time.perf_counter()
    async with Router():
        print(time.perf_counter() - began)

anyio.run(main)
"""


def in_new_processes(*programs: str) -> list[list[float]]:
    """Return what each program prints, round by round, with byte code and kernels at hand.

    Both are written below a directory for this call, so that it matters neither what earlier
    runs have left nor whether the packages' own directories can be written to. A first round
    does so.
    """
    with tempfile.TemporaryDirectory(prefix="helixnb-bench-") as directory:
        environment = os.environ | {
            "HELIXNB_CACHE_DIR": str(Path(directory, "kernels")),
            "PYTHONPYCACHEPREFIX": str(Path(directory, "pycache")),
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(program: str) -> float:
            command = [sys.executable, "-P", "-c", program]
            done = subprocess.run(
                command, check=True, env=environment, stdout=subprocess.PIPE, text=True
            )
            return float(done.stdout.split()[-1])

        rounds = [[run(each) for each in programs] for _ in range(ROUNDS + 1)]
    return rounds[1:]


class Import:
    """`import helixnb`, which imports Numba, beside Numba alone."""

    timeout = 300

    def track_import_over_numba(self) -> float:
        rounds = in_new_processes(STATEMENT.format("helixnb"), STATEMENT.format("numba"))
        return median(ours / numba for ours, numba in rounds)

    track_import_over_numba.unit = "x"  # type: ignore[attr-defined]


class WarmStart:
    """The first router of a process opens, after the import, with all kernels in the cache."""

    timeout = 300

    def setup_cache(self) -> list[list[float]]:
        return in_new_processes(OPENING, STATEMENT.format("numba"))

    def track_warm_start_ms(self, rounds: list[list[float]]) -> float:
        return median(opening for opening, _ in rounds) * 1e3

    def track_warm_start_over_numba_import(self, rounds: list[list[float]]) -> float:
        return median(opening / numba for opening, numba in rounds)

    track_warm_start_ms.unit = "ms"  # type: ignore[attr-defined]
    track_warm_start_over_numba_import.unit = "x"  # type: ignore[attr-defined]
