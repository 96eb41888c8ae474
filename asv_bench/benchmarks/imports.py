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


class NewProcess:
    """Programs in turn, each in a process of its own, with byte code and kernels at hand.

    Both are written below a directory of the benchmark's own, so that it matters neither what
    earlier runs have left nor whether the packages' own directories can be written to.
    """

    timeout = 300

    def setup(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="helixnb-bench-")
        root = Path(self.directory.name)
        self.environment = os.environ | {
            "HELIXNB_CACHE_DIR": str(root / "kernels"),
            "PYTHONPYCACHEPREFIX": str(root / "pycache"),
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def teardown(self) -> None:
        self.directory.cleanup()

    def seconds(self, *programs: str) -> list[list[float]]:
        """Return what each program printed in each round; a first one warms up."""
        rounds = [[self.run(each) for each in programs] for _ in range(ROUNDS + 1)]
        return rounds[1:]

    def run(self, program: str) -> float:
        """Return the number that a program prints."""
        command = [sys.executable, "-P", "-c", program]
        done = subprocess.run(
            command, check=True, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout.split()[-1])


class Import(NewProcess):
    """`import helixnb`, which imports Numba, beside Numba alone."""

    def track_import_over_numba(self) -> float:
        rounds = self.seconds(STATEMENT.format("helixnb"), STATEMENT.format("numba"))
        return median(ours / numba for ours, numba in rounds)

    track_import_over_numba.unit = "x"  # type: ignore[attr-defined]


class WarmStart(NewProcess):
    """The first router of a process opens, after the import, with all kernels in the cache."""

    def track_warm_start_ms(self) -> float:
        return median(opening for (opening,) in self.seconds(OPENING)) * 1e3

    def track_warm_start_over_numba_import(self) -> float:
        rounds = self.seconds(OPENING, STATEMENT.format("numba"))
        return median(opening / numba for opening, numba in rounds)

    track_warm_start_ms.unit = "ms"  # type: ignore[attr-defined]
    track_warm_start_over_numba_import.unit = "x"  # type: ignore[attr-defined]
