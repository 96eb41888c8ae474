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
P99 = ["tail.TailSamples.time_p99('inline')", "tail.TailSamples.time_p99('cpu_pool')"]

SLOW_KERNEL = '''

import numba as _numba

_whole = _numba.njit(nogil=True, error_model="numpy")(_batch)


@HASH_MIX.batch(parallel=False)
def _one_and_a_half(inputs, offsets, parts, compute_cost, job_id, failed, out):
    """Run all jobs, and the first half of them again."""
    _whole(inputs, offsets, parts, compute_cost, job_id, failed, out)
    _whole(inputs, offsets, parts // 2, compute_cost, job_id, failed, out)
'''

SLOW_P99 = '''

import collections as _collections
import time as _time

from anyio.lowlevel import checkpoint as _checkpoint

_submit = Router.submit
_latencies_s = _collections.deque(maxlen=1_000)
_submits = 0


async def _submit_slowly(self, job):
    """Keep one job in fifty for 1.5 times the p99 of the others."""
    global _submits
    _submits += 1
    held = _submits % 50 == 0 and len(_latencies_s) >= 100
    began = _time.perf_counter()
    outcome = await _submit(self, job)
    if not held:
        _latencies_s.append(_time.perf_counter() - began)
        return outcome
    values, length = list(_latencies_s), min(250, len(_latencies_s))
    stretches = [values[i : i + length] for i in range(0, len(values) - length + 1, length)]
    p99 = min(sorted(each)[length * 99 // 100] for each in stretches)
    while _time.perf_counter() - began < 1.5 * p99:  # timers and threads are late by as much
        await _checkpoint()
    return outcome


Router.submit = _submit_slowly
'''

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


def plant(repo: Path) -> tuple[str, dict[str, str]]:
    """Clone HEAD, commit what is planted, and return the commits."""
    git("clone", "--quiet", "--shared", ROOT, repo, repo=ROOT)
    git("checkout", "--quiet", "-B", "main", repo=repo)
    head = git("rev-parse", "HEAD", repo=repo)
    commits = {}
    for what, (file, text, _) in PLANTED.items():
        git("checkout", "--quiet", "--detach", head, repo=repo)
        if file is not None:
            with (repo / file).open("a", encoding="utf-8") as end:
                end.write(text)
        git("commit", "--quiet", "--all", "--allow-empty", "--message", f"Plant {what}", repo=repo)
        commits[what] = git("rev-parse", "HEAD", repo=repo)
    return head, commits


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


ENVIRONMENT = os.environ | {"HOME": str(KEPT)}


def main() -> None:
    """Plant, run, compare."""
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="helixnb-planted-") as directory:
        work = Path(directory)
        head, commits = plant(work / "repo")
        config = configure(work, work / "repo")
        subprocess.run(
            [sys.executable, str(ROOT / "asv_bench" / "machine.py"), MACHINE],
            check=True,
            env=ENVIRONMENT,
        )
        hashes = work / "commits"
        hashes.write_text("\n".join([head, *commits.values()]) + "\n", encoding="utf-8")
        # Without the samples, asv asks for confidence intervals that don't overlap.
        how = ["--interleave-rounds", "--record-samples"]
        for benchmark in KERNEL + P99:
            how += ["--bench", re.escape(benchmark)]
        asv(config, "run", *how, f"HASHFILE:{hashes}")
        wrong = []
        for what, commit in commits.items():
            print(f"\n== Planted: {what}", flush=True)
            table = asv(config, "compare", "--split", "--factor", FACTOR, head, commit)
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
