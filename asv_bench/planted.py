"""Check that asv flags slowdowns that were planted, and none where there is none.

In a clone of HEAD, two commits make something 1.5 times as slow, and a third changes nothing. asv
runs the benchmarks of all four in turn and compares each with HEAD. Exits with 1 if a planted
slowdown isn't reported as a regression of one of its benchmarks, or the commit without a change is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".asv" / "planted"  # asv's environment and pip's cache take a minute to make
MACHINE = "planted"
FACTOR = "1.2"
KERNEL = ["kernels.BatchKernel.time_kernel('HashMix', 1024)"]
# Where other programs keep a CPU busy, the pool's p99 is theirs, and says nothing; inline, which
# needs one CPU, is then the one that tells.
P99_NAME = "tail.TailSamples.time_p99"
P99 = [f"{P99_NAME}('inline')", f"{P99_NAME}('cpu_pool')"]

SLOW_KERNEL = '''

import numba as _numba

_whole = _numba.njit(nogil=True, error_model="numpy")(_batch)


@HASH_MIX.batch(parallel=False)
def _one_and_a_half(inputs, offsets, parts, compute_cost, job_id, failed, out):
    """Run all jobs, and the first half of them again."""
    _whole(inputs, offsets, parts, compute_cost, job_id, failed, out)
    _whole(inputs, offsets, parts // 2, compute_cost, job_id, failed, out)
'''

SLOW_P99 = """

import time as _time

from anyio.lowlevel import checkpoint as _checkpoint

_submit = Router.submit
_submits = 0


async def _submit_slowly(self, job):
    global _submits
    _submits += 1
    held = _submits % 50 == 0
    began = _time.perf_counter()
    outcome = await _submit(self, job)
    while held and _time.perf_counter() - began < HOLD_S[outcome.strategy]:
        await _checkpoint()  # timers and threads are late by as much as this is about
    return outcome


Router.submit = _submit_slowly
HOLD_S = """

PLANTED: dict[str, tuple[str | None, str, list[str]]] = {
    # what: the file that is appended to, the text, the benchmarks of which one must be flagged
    "nothing": (None, "", []),
    "a kernel 1.5 times as slow": ("kernels/helixnb_kernels/hash_mix.py", SLOW_KERNEL, KERNEL),
    "a p99 1.5 times as high": ("helixnb/__init__.py", SLOW_P99, P99),
}


def git(*arguments: str | Path, repo: Path) -> str:
    """Run git and return what it prints."""
    who = ("-c", "user.name=planted", "-c", "user.email=planted@localhost")
    command = ["git", "-C", str(repo), *who, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def clone(repo: Path) -> str:
    """Clone HEAD, and return which commit it is."""
    git("clone", "--quiet", "--shared", ROOT, repo, repo=ROOT)
    git("checkout", "--quiet", "-B", "main", repo=repo)
    return git("rev-parse", "HEAD", repo=repo)


def plant(repo: Path, head: str, hold_s: dict[str, float]) -> dict[str, str]:
    """Commit what is planted, each on `head`, and return the commits."""
    commits = {}
    for what, (file, text, _) in PLANTED.items():
        git("checkout", "--quiet", "--detach", head, repo=repo)
        if file is not None:
            with (repo / file).open("a", encoding="utf-8") as end:
                end.write(f"{text}{hold_s}\n" if text is SLOW_P99 else text)
        git("commit", "--quiet", "--all", "--allow-empty", "--message", f"Plant {what}", repo=repo)
        commits[what] = git("rev-parse", "HEAD", repo=repo)
    return commits


def configure(work: Path, repo: Path) -> Path:
    """Write asv's configuration for the clone: today's benchmarks, and results of its own."""
    config = json.loads((ROOT / "asv_bench" / "asv.conf.json").read_text(encoding="utf-8"))
    config |= {
        "repo": str(repo),
        "benchmark_dir": str(ROOT / "asv_bench" / "benchmarks"),
        "env_dir": str(KEPT / "env"),
        "results_dir": str(work / "results"),
        "html_dir": str(work / "html"),
        "build_cache_size": 1 + len(PLANTED),  # the commits take turns
    }
    path = work / "asv.conf.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def asv(config: Path, *arguments: str) -> str:
    """Run asv and return what it prints, which is shown too."""
    command = [sys.executable, "-m", "asv", *arguments[:1], "--config", str(config)]
    command += ["--machine", MACHINE, *arguments[1:]]
    with subprocess.Popen(
        command, cwd=config.parent, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"asv {' '.join(arguments)} failed")
    return "".join(lines)


def p99s_s(work: Path) -> dict[str, float]:
    """Return the p99 of each strategy that was run, out of asv's results."""
    (path,) = (work / "results" / MACHINE).glob("*-*.json")
    values, (strategies,) = json.loads(path.read_text(encoding="utf-8"))["results"][P99_NAME][:2]
    return {
        strategy.strip("'"): value
        for strategy, value in zip(strategies, values, strict=True)
        if f"{P99_NAME}({strategy})" in P99
    }


def bench(benchmarks: list[str]) -> list[str]:
    """Return the options that choose benchmarks."""
    return [option for each in benchmarks for option in ("--bench", re.escape(each))]


ENVIRONMENT = os.environ | {"HOME": str(KEPT)}


def main() -> None:
    """Plant, run, compare."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="helixnb-planted-") as directory:
        work = Path(directory)
        head = clone(work / "repo")
        config = configure(work, work / "repo")
        subprocess.run(
            [sys.executable, str(ROOT / "asv_bench" / "machine.py"), MACHINE],
            check=True,
            env=ENVIRONMENT,
        )
        asv(config, "run", "--attribute", "rounds=1", *bench(P99), f"{head}^!")
        hold_s = {strategy: 1.5 * p99_s for strategy, p99_s in p99s_s(work).items()}
        commits = plant(work / "repo", head, hold_s)
        hashes = work / "commits"
        hashes.write_text("\n".join([head, *commits.values()]) + "\n", encoding="utf-8")
        asv(config, "run", "--interleave-rounds", *bench(KERNEL + P99), f"HASHFILE:{hashes}")
        # By medians alone: a round that other programs spoil takes the significance from a dozen
        # samples, but leaves their median where it is.
        how = ["--split", "--no-stats", "--factor", FACTOR]
        wrong = []
        for what, commit in commits.items():
            print(f"\n== Planted: {what}", flush=True)
            table = asv(config, "compare", *how, head, commit)
            worse = [line for line in table.splitlines() if line.startswith(("| +", "| !"))]
            expected = PLANTED[what][2]
            if not expected:
                wrong += [f"{what}: flagged all the same: {line}" for line in worse]
            elif not any(benchmark in line for line in worse for benchmark in expected):
                wrong.append(f"{what}: not flagged: {' '.join(expected)}")
    if wrong:
        sys.exit("\n".join(["", *wrong]))
    print("\nasv flags both slowdowns, and nothing where nothing changed.")


if __name__ == "__main__":
    main()
