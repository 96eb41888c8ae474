"""``python -m helixnb``: a seeded workload through a live router, and what became of it.

With --web it goes on until Ctrl-C, while a browser watches.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio

from helixnb._errors import HelixError
from helixnb._observe.stats import Stats
from helixnb._records import Job
from helixnb._router import Router
from helixnb.workload import (
    closed_loop,
    light_jobs,
    light_mix,
    open_loop,
    pace,
    poisson,
    read_jobs,
)

if TYPE_CHECKING:
    from helixnb._terminal import Display

CLIENTS = 32
JOBS = 5_000
WEB_RATE = 2_000.0
HOST, PORT = "127.0.0.1", 8_000
INTERRUPTED = 130


class _Run(NamedTuple):
    """What a run gives: the router's stats, and seconds: of all of it, and from each due time."""

    stats: Stats
    elapsed_s: float
    latencies_s: list[float]


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status, 1 if a job failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _complete(parser, options)
    try:
        jobs = _jobs_of_file(options)
        _check_installed(options)
        listener = _listener(options) if options.web else None
    except (OSError, HelixError, _OptionError) as error:
        return _refuse(error)
    try:
        if listener is None:
            run = anyio.run(_demo, jobs, options)
        else:
            with listener:
                run = anyio.run(_web, jobs, options, listener)
    except KeyboardInterrupt:
        return INTERRUPTED
    except HelixError as error:
        return _refuse(error)
    except ExceptionGroup as group:  # the clients' tasks; a job of a file that no kernel takes
        errors = group.subgroup(HelixError)
        if errors is None:
            raise
        return _refuse(_first(errors))
    if options.json:
        print(json.dumps(run.stats.as_dict()))
    else:
        from helixnb._terminal import report

        report(*run, _workload(options))
    return 1 if run.stats.failed else 0


class _OptionError(Exception):
    pass


def _refuse(error: BaseException) -> int:
    print(f"helixnb: {error}", file=sys.stderr)
    return 2


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helixnb", description=__doc__)
    parser.add_argument("--jobs", type=_whole, help=f"how many jobs of the light mix ({JOBS})")
    parser.add_argument(
        "--rate",
        type=_positive,
        help="arrivals a second, open loop; without it, "
        f"{CLIENTS} clients submit one job after the other (with --web: {WEB_RATE:g})",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the workload (%(default)s)")
    parser.add_argument(
        "--file",
        type=Path,
        help="jobs to run instead, one JSON object a line; with --web, again and again",
        metavar="JOBS.jsonl",
    )
    parser.add_argument("--json", action="store_true", help="print the stats as one JSON object")
    parser.add_argument(
        "--web", action="store_true", help="serve a live page, and go on until Ctrl-C"
    )
    parser.add_argument("--host", help=f"where --web listens ({HOST})")
    parser.add_argument(
        "--port", type=_port, help=f"the port of --web ({PORT}); 0 for any that is free"
    )
    parser.add_argument(
        "--allow-reconfigure",
        action="store_true",
        help="let whoever sees the page of --web change settings",
    )
    return parser


def _complete(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse options that don't go together, and give the others their defaults."""
    if options.web:
        if options.jobs is not None:
            parser.error("--jobs and --web don't go together: --web goes on until Ctrl-C")
        options.rate = WEB_RATE if options.rate is None else options.rate
        options.host = HOST if options.host is None else options.host
        options.port = PORT if options.port is None else options.port
    else:
        for name in ("host", "port", "allow_reconfigure"):
            value = getattr(options, name)
            if value is not None and value is not False:  # port 0 is one
                parser.error(f"--{name.replace('_', '-')} is an option of --web")
    if options.jobs is None:
        options.jobs = JOBS
    elif options.file is not None:
        parser.error("--jobs and --file don't go together: all jobs of the file run")


def _whole(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return number


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return number


def _port(text: str) -> int:
    if not 0 <= (number := int(text)) < 2**16:
        raise argparse.ArgumentTypeError(f"must lie in 0 .. 65535, got {text}")
    return number


def _jobs_of_file(options: argparse.Namespace) -> list[Job] | None:
    if options.file is None:
        return None
    jobs = read_jobs(options.file)
    if options.web and not jobs:
        raise _OptionError(f"{options.file} has no jobs: --web needs some to go on with")
    return jobs


def _check_installed(options: argparse.Namespace) -> None:
    def missing(*modules: str) -> bool:
        return any(importlib.util.find_spec(module) is None for module in modules)

    if options.web and missing("starlette", "prometheus_client", "uvicorn"):
        raise _OptionError(
            "--web serves with uvicorn and starlette: pip install 'helixnb[web,demo]'"
        )
    if not options.json and missing("rich"):
        extras = "web,demo" if options.web else "demo"
        raise _OptionError(
            f"the demo draws with rich: pip install 'helixnb[{extras}]' (--json works without it)"
        )


def _listener(options: argparse.Namespace) -> socket.socket:
    from helixnb.web._serve import listen

    try:
        return listen(options.host, options.port)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise _OptionError(f"can't listen on {options.host}, port {options.port}: {why}") from None


async def _demo(jobs: list[Job] | None, options: argparse.Namespace) -> _Run:
    """Run jobs through a router."""
    jobs = light_mix(options.jobs, options.seed) if jobs is None else jobs
    latencies_s: list[float] = []
    async with _opened(_display(options, len(jobs))) as router:
        began_s = time.perf_counter()
        if options.rate is None:
            await closed_loop(router, jobs, clients=CLIENTS)
        else:
            latencies_s = await open_loop(router, jobs, rate=options.rate, seed=options.seed)
        return _Run(router.stats(), time.perf_counter() - began_s, latencies_s)


async def _web(
    jobs: list[Job] | None, options: argparse.Namespace, listener: socket.socket
) -> _Run:
    """Run jobs through a router without end, and serve its page."""
    from helixnb.web._serve import serve

    endless = light_jobs(options.seed) if jobs is None else itertools.cycle(jobs)
    display = _display(options, None)

    def say(url: str) -> None:
        text = f"helixnb: {url} (Ctrl-C ends it)"
        if display is None:
            print(text, file=sys.stderr, flush=True)
        else:
            display.say(text)

    async with _opened(display) as router:

        async def work() -> None:
            # Not open_loop, which keeps a number for each job.
            arrivals = poisson(options.rate, options.seed)
            await pace(lambda job, _: router.submit_soon(job), endless, arrivals)

        began_s = time.perf_counter()
        await serve(
            router,
            listener,
            options.host,
            work,
            allow_reconfigure=options.allow_reconfigure,
            on_listening=say,
        )
        return _Run(router.stats(), time.perf_counter() - began_s, [])


def _display(options: argparse.Namespace, jobs: int | None) -> Display | None:
    if options.json:
        return None
    from helixnb._terminal import Display

    return Display(jobs)


@asynccontextmanager
async def _opened(display: Display | None) -> AsyncIterator[Router]:
    """Open a router, and draw it if there is a display."""
    if display is None:
        async with Router() as router:
            yield router
        return
    router = Router(progress=display.compiled)
    with display.showing(router):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(display.follow, router)
            async with router:
                yield router
            tasks.cancel_scope.cancel()


def _workload(options: argparse.Namespace) -> str:
    source = f"light mix, seed {options.seed}" if options.file is None else str(options.file)
    loop = f"{CLIENTS} clients" if options.rate is None else f"open loop, {options.rate:g} jobs/s"
    return f"{source}; {loop}"


if __name__ == "__main__":
    sys.exit(main())
