"""Run the kernel cache under every NUMBA_* variable, and print what became of each.

The list of variables is Numba's own: what it asks the environment for. Under each value a process
must give the right answer beside a cache that was filled without it. It reads that cache if the
value changes no machine code, and else has entries of its own, which a second process reads.

Usage: ``python numba_variables.py [PART_OF_A_NAME ...]``; ends with 1 if something is wrong.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Where neither 0 nor 1 says much. PATH stands for a place of the run's own.
VALUES = {
    "NUMBA_BOUNDSCHECK": ["0", "1"],
    "NUMBA_CACHE_DIR": ["PATH"],
    "NUMBA_CACHE_LOCATOR_CLASSES": ["InTreeCacheLocator", "no.such.Locator"],
    "NUMBA_CHROME_TRACE": ["PATH"],
    "NUMBA_COLOR_SCHEME": ["dark_bg"],
    "NUMBA_CPU_FEATURES": ["", "+sse2"],
    "NUMBA_CPU_NAME": ["generic"],
    "NUMBA_CUDA_DEFAULT_PTX_CC": ["7.0"],
    "NUMBA_CUDA_DRIVER": ["PATH"],
    "NUMBA_CUDA_INCLUDE_PATH": ["PATH"],
    "NUMBA_CUDA_LOG_LEVEL": ["debug"],
    "NUMBA_CUDA_LOG_SIZE": ["2048"],
    "NUMBA_CUDA_MAX_PENDING_DEALLOCS_COUNT": ["20"],
    "NUMBA_CUDA_MAX_PENDING_DEALLOCS_RATIO": ["0.5"],
    "NUMBA_CUDA_MEMORY_MANAGER": ["default"],
    "NUMBA_DEBUG_NRT_STACK_LIMIT": ["8"],
    "NUMBA_DEBUG_PRINT_AFTER": ["nopython_type_inference"],
    "NUMBA_DEBUG_PRINT_BEFORE": ["nopython_type_inference"],
    "NUMBA_DEBUG_PRINT_WRAP": ["nopython_type_inference"],
    "NUMBA_DUMP_HTML": ["PATH"],
    "NUMBA_FORCE_CUDA_CC": ["7.0"],
    "NUMBA_FUNCTION_CACHE_SIZE": ["1"],
    "NUMBA_GDB_BINARY": ["/bin/false"],
    "NUMBA_LLVM_REFPRUNE_FLAGS": ["", "per_bb"],
    "NUMBA_NUM_THREADS": ["1", "2"],
    "NUMBA_OPT": ["0", "1", "2", "3", "max"],
    "NUMBA_PARFOR_MAX_TUPLE_SIZE": ["1"],
    "NUMBA_THREADING_LAYER": ["workqueue", "bogus"],
    "NUMBA_THREADING_LAYER_PRIORITY": ["workqueue omp tbb"],
}
SWITCH = ["0", "1"]
MARK = "helixnb cache:"
CHILD = "--child"
LIMIT_S = 120


def main(parts: list[str]) -> int:
    """Print a row for each value, and return how the program ends."""
    names = [name for name in ask_for_names() if not parts or any(part in name for part in parts)]
    settings = [(name, value) for name in names for value in VALUES.get(name, SWITCH)]
    with tempfile.TemporaryDirectory(prefix="helixnb-variables-") as directory:
        filled = Path(directory, "filled")
        usual = run(filled)
        # Both compile, so that the code is seen to be the same from one process to the next.
        if usual.wrong or run(Path(directory, "again")).code != usual.code:
            print(f"without any variable: {usual}")
            return 1
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rows = pool.map(
                lambda numbered: check(
                    Path(directory, str(numbered[0])), filled, usual, *numbered[1]
                ),
                enumerate(settings),
            )
            print("| variable | value | machine code | cache | verdict |\n|---|---|---|---|---|")
            faults = 0
            for (name, value), (code, cache, verdict) in zip(settings, rows, strict=True):
                faults += verdict != "right"
                print(f"| {name} | `{value}` | {code} | {cache} | {verdict} |", flush=True)
    print(f"\n{len(settings)} values of {len(names)} variables, {faults} wrong")
    return min(faults, 1)


def ask_for_names() -> list[str]:
    """Return what Numba asks the environment for, as it reads its settings."""
    program = """
import os
from numba.core import config
class Asked(dict):
    def get(self, name, default=None):
        print(name)
config._env_reloader.process_environ(Asked())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean(), text=True, capture_output=True, check=True
    )
    return sorted({line for line in done.stdout.split() if line.startswith("NUMBA_")})


class Run(NamedTuple):
    """What a process said: forms read from the cache, digests of their code, and what is wrong."""

    hits: str
    code: str
    wrong: str
    reason: str


def run(cache: Path, **variables: str) -> Run:
    """Warm a kernel up in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, CHILD],
            env={**clean(), "HELIXNB_CACHE_DIR": str(cache), **variables},
            text=True,
            capture_output=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return Run("", "", f"didn't end in {LIMIT_S} s", "")
    # It may stand behind what a variable has Numba print.
    found = [line.partition(MARK)[2].split() for line in done.stdout.splitlines() if MARK in line]
    reasons = [line for line in done.stderr.splitlines() if "compile" in line and "each" in line]
    reason = reasons[0].partition("in each process: ")[2] if reasons else ""
    if done.returncode or len(found) != 1:
        last = done.stderr.splitlines() or ["no output"]
        return Run("", "", f"ended with {done.returncode}: {last[-1][:120]}", reason)
    answer, hits, code = found[0]
    return Run(hits, code, "" if answer == "right" else "wrong answer", reason)


def check(place: Path, filled: Path, usual: Run, name: str, value: str) -> tuple[str, str, str]:
    """Return how the code compares, what the cache did, and the verdict, for a variable's value."""
    place.mkdir()
    shutil.copytree(filled, place / "cache")
    variables = {name: value.replace("PATH", str(place / "path"))}
    first = run(place / "cache", **variables)
    if first.wrong:
        return "?", "?", first.wrong
    if first.hits == "all":
        fresh = run(place / "fresh", **variables)
        same = is_same(fresh.code, usual.code)
        verdict = fresh.wrong or ("right" if same else "ANSWERED FROM OTHER CODE")
        return "the same" if same else "other", "shared", verdict
    code = "the same" if is_same(first.code, usual.code) else "other"
    if first.hits == "interpreted":
        return "none", "not used", "right"
    second = run(place / "cache", **variables)
    if second.hits == "all":
        return code, "its own", second.wrong or "right"
    reason = second.reason or "NO CACHE, and no reason"
    return code, f"none: {reason}", second.wrong or ("right" if second.reason else "wrong")


def clean() -> dict[str, str]:
    """Return the environment without variables of Numba's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}


def child() -> None:
    """Warm a small kernel up, and print its answer, cache hits, and digests of its code."""
    import logging

    from helixnb_kernels import kernel, warm_up

    logging.basicConfig(format="%(message)s")
    logging.getLogger("helixnb.kernels").setLevel(logging.DEBUG)

    @kernel(inputs="float64[:]", returns="float64")
    def mean_root(x: Any) -> Any:
        if len(x) == 0:
            raise ValueError("nothing")
        total = 0.0
        for i in range(len(x)):
            total += math.sqrt(x[i])
        return total / len(x)

    warm_up([mean_root])
    rows = [mean_root.as_inputs(row) for row in ([4.0] * 9, [])]
    alone = mean_root.solo_call(rows[0], 1, 1)()
    result = mean_root.run_batch(rows, [1, 1], [1, 2], threads=2)
    right = alone == 2.0 and result.values[0] == 2.0 and result.failed == [1]
    forms: list[Any] = mean_root.forms()
    hits, code = "interpreted", ["none"]
    if all(hasattr(form, "stats") for form in forms):
        read = {sum(form.stats.cache_hits.values()) for form in forms}
        hits = {(0,): "none", (1,): "all"}.get(tuple(read), "some")
        code = [digest_of(form) for form in forms]
    print(MARK, "right" if right else "wrong", hits, ",".join(code))


def digest_of(form: Any) -> str:
    """Digest the assembly of a form, but for names with an address in them."""
    if sum(form.stats.cache_hits.values()):
        return "unknown"  # Numba keeps the assembly of what it has compiled itself
    code = "".join(form.inspect_asm().values())
    code = re.sub(r"\d*__numba_parfor_gufunc_0x[0-9a-f]+", "gufunc", code)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def is_same(code: str, usual: str) -> bool:
    """Compare what both have: without a safe threading layer there is no parallel form."""
    return all(one == other for one, other in zip(code.split(","), usual.split(","), strict=False))


if __name__ == "__main__":
    if sys.argv[1:] == [CHILD]:
        child()
    else:
        sys.exit(main(sys.argv[1:]))
