"""Routers in frameworks, opened and closed where each has a place for that."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import fastapi
import pytest
from support import IN_THREADS, Always, check_balanced, job, python, router, run_pytest

from helixnb import BlockingRouter, Router, RouterStateError, Status, Strategy

pytestmark = pytest.mark.anyio

on_asyncio = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)
BACKENDS = [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})]


def new_router() -> Router:
    """Make a router whose policy, an `Always`, may be told what to choose."""
    return router(policy=Always(Strategy.SPAWN))


async def answer_all(r: Router) -> None:
    """Check that a router answers by each strategy."""
    policy: Any = r._policy
    for policy.strategy in (Strategy.INLINE, *IN_THREADS):
        assert (await r.submit(job())).status is Status.COMPLETED


# -- Fixtures of pytest's plugins -----------------------------------------------------------------

FIXTURES = '''
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from helixnb import Job, Router, RouterConfig, Strategy
from helixnb.testing import ScriptedRouter, opened
from helixnb_kernels import HASH_MIX

JOB = Job(id=1, kind="HashMix", inputs=[1], compute_cost=10)
RUN_BY = [each for each in Strategy if each is not Strategy.DROP]
CLOSED = []


async def by_block():
    """As in the guide."""
    async with opened(ScriptedRouter(kernels=[HASH_MIX])) as router:
        yield router
    CLOSED.append(router.state)


async def by_calls():
    """Without a block, and two routers that end in the order in which they began."""
    first = await ScriptedRouter(kernels=[HASH_MIX]).open()
    second = await ScriptedRouter(kernels=[HASH_MIX]).open()
    yield second
    await first.close()
    await second.close()
    CLOSED.append(second.state)


async def by_stack():
    """With an exit stack, which another task may close."""
    stack = AsyncExitStack()
    yield await stack.enter_async_context(ScriptedRouter(kernels=[HASH_MIX]))
    await stack.aclose()
    CLOSED.append("closed")


async def check(router):
    for strategy in RUN_BY:
        router.script.route("HashMix", strategy)
        outcome = await router.submit(JOB)
        assert outcome.strategy is strategy
        assert isinstance(outcome.value, int)
    ticket = router.submit_soon(JOB)
    assert len(await router.submit_many([JOB] * 10)) == 10
    assert (await ticket.wait()).value == outcome.value


@pytest.fixture(scope="session", autouse=True)
def all_have_closed():
    yield
    assert CLOSED == ["closed"] * EXPECTED
'''


def check_fixtures(directory: Path, code: str, *options: str, **settings: Any) -> None:
    """Run tests in a fresh interpreter, with warnings as errors; all must pass."""
    (directory / "test_fixtures.py").write_text(FIXTURES + code)
    done = run_pytest(directory, *options, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert " passed" in last, done.stdout
    assert "skipped" not in last, done.stdout


def for_each_scope(fixture: str, test: str = "") -> str:
    """Return fixtures by each way and of each scope, and two tests for each."""
    code = ""
    for scope in ("function", "class", "module", "session"):
        for way in ("by_block", "by_calls", "by_stack"):
            name = f"{way}_{scope}"
            code += f"""
{fixture.format(scope=scope)}
async def {name}():
    async with asynccontextmanager({way})() as router:
        yield router
"""
            for turn in (1, 2):
                code += f"""
{test.format(scope=scope)}
async def test_{name}_{turn}({name}):
    await check({name})
"""
    return code


@pytest.mark.slow
def test_fixtures_of_pytest_asyncio(tmp_path: Path) -> None:
    """Of each scope: setup, tests and teardown are tasks of their own there."""
    pytest.importorskip("pytest_asyncio")
    code = "EXPECTED = 3 * (2 + 2 + 1 + 1)\nimport pytest_asyncio\n"
    code += for_each_scope(
        "@pytest_asyncio.fixture(scope='{scope}', loop_scope='{scope}')",
        "@pytest.mark.asyncio(loop_scope='{scope}')",
    )
    # Functions are no members of a class: pytest makes a class-scoped fixture for each then.
    option = "asyncio_default_fixture_loop_scope=function"
    check_fixtures(tmp_path, code, "-o", option, plugins=("anyio", "asyncio"))


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "options"), BACKENDS, ids=["asyncio", "uvloop", "trio"])
def test_fixtures_of_anyio(tmp_path: Path, backend: str, options: dict[str, Any]) -> None:
    """Of each scope, on each event loop."""
    code = textwrap.dedent(
        f"""
        EXPECTED = 3 * (2 + 2 + 1 + 1)
        @pytest.fixture(scope="session")
        def anyio_backend():
            return ({backend!r}, {options!r})

        pytestmark = pytest.mark.anyio
        """
    )
    code += for_each_scope("@pytest.fixture(scope='{scope}')")
    check_fixtures(tmp_path, code)


# -- aiohttp --------------------------------------------------------------------------------------


def aiohttp_app(how: str, routers: list[Router]) -> Any:
    """Make an application that opens a router by its hooks or by a context."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        await answer_all(routers[-1])
        return web.Response(text="done")

    async def start(app: web.Application) -> None:
        routers.append(await new_router().open())

    async def stop(app: web.Application) -> None:
        await routers[-1].close()

    async def whole(app: web.Application) -> AsyncIterator[None]:
        async with new_router() as r:
            routers.append(r)
            yield

    app = web.Application()
    app.router.add_get("/", answer)
    if how == "cleanup_ctx":
        app.cleanup_ctx.append(whole)
    else:
        app.on_startup.append(start)
        getattr(app, how).append(stop)
    return app


@on_asyncio
@pytest.mark.parametrize("how", ["on_cleanup", "on_shutdown", "cleanup_ctx"])
async def test_aiohttp(how: str) -> None:
    """Its runner is set up by one task and cleaned up by another."""
    pytest.importorskip("aiohttp")
    import aiohttp
    from aiohttp import web

    routers: list[Router] = []
    runner = web.AppRunner(aiohttp_app(how, routers))

    async def set_up() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    await asyncio.create_task(set_up())
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        for _ in range(2):
            async with client.get("/") as answer:
                assert await answer.text() == "done"
    await asyncio.create_task(runner.cleanup())
    assert [r.state for r in routers] == ["closed"]
    check_balanced(routers[0].stats())


AIOHTTP = """if True:
    import sys
    from aiohttp import web
    from helixnb import Job, Router
    from helixnb_kernels import HASH_MIX

    ROUTER = web.AppKey("router", Router)
    JOB = Job(id=1, kind="HashMix", inputs=[1], compute_cost=10)

    async def answer(request):
        return web.json_response((await request.app[ROUTER].submit(JOB)).value)

    async def start(app):
        app[ROUTER] = await Router(kernels=[HASH_MIX]).open()

    async def stop(app):
        await app[ROUTER].close()
        print(app[ROUTER].state, app[ROUTER].stats().completed, flush=True)

    async def whole(app):
        await start(app)
        yield
        await stop(app)

    app = web.Application()
    app.router.add_get("/", answer)
    if sys.argv[1] == "hooks":
        app.on_startup.append(start)
        app.on_cleanup.append(stop)
    else:
        app.cleanup_ctx.append(whole)
    web.run_app(app, host="127.0.0.1", port=0, print=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("how", ["hooks", "cleanup_ctx"])
def test_aiohttp_as_a_program(how: str) -> None:
    """`run_app` ends by SIGTERM, with the router closed."""
    pytest.importorskip("aiohttp")
    import urllib.request

    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", AIOHTTP, how], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            url = said.split()[3]
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert answer.read().isdigit()
            process.send_signal(signal.SIGTERM)
            rest = process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert "closed 1" in rest


# -- Starlette and FastAPI ------------------------------------------------------------------------


def starlette_app(lifespan: Any, endpoint: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(await endpoint(request.app.state.router))

    return Starlette(routes=[Route("/", answer)], lifespan=lifespan)


def fastapi_app(lifespan: Any, endpoint: Any) -> Any:
    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/")
    async def answer(
        tasks: fastapi.BackgroundTasks, r: Annotated[Any, fastapi.Depends(get_router)]
    ) -> Any:
        tasks.add_task(answer_all, r)
        return await endpoint(r)

    return app


def get_router(request: fastapi.Request) -> Any:
    """Give an endpoint its router."""
    return request.app.state.router


@pytest.mark.parametrize("make_app", [starlette_app, fastapi_app])
@pytest.mark.parametrize(("backend", "options"), BACKENDS, ids=["asyncio", "uvloop", "trio"])
def test_a_lifespan(make_app: Callable[..., Any], backend: Any, options: dict[str, Any]) -> None:
    """A test client starts the application anew each time, in an event loop of its own."""
    pytest.importorskip("httpx2")
    from starlette.testclient import TestClient

    routers: list[Router] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with new_router() as app.state.router:
            routers.append(app.state.router)
            yield

    async def endpoint(r: Router) -> str:
        await answer_all(r)
        return "done"

    app = make_app(lifespan, endpoint)
    for _ in range(2):
        with TestClient(app, backend=backend, backend_options=options) as client:
            for _ in range(3):
                assert client.get("/").json() == "done"
    assert [r.state for r in routers] == ["closed"] * 2
    assert routers[0] is not routers[1]
    for r in routers:
        check_balanced(r.stats())


# -- Applications that keep their own books of what they have opened ------------------------------


class Component:
    """Anything with a method to start and one to stop."""

    async def start(self) -> None:
        self.router = await new_router().open()

    async def stop(self) -> None:
        await self.router.close()


class Application:
    """Starts what it consists of one by one, each in a task, and stops it in reverse."""

    def __init__(self) -> None:
        self.parts = [Component() for _ in range(3)]
        self.stack = AsyncExitStack()

    async def start(self) -> None:
        for part in self.parts:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(part.start)
            self.stack.push_async_callback(part.stop)

    async def stop(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.stack.aclose)


async def test_components() -> None:
    """Each is started by a task that has ended long before another one stops it."""
    application = Application()
    await application.start()
    for part in application.parts:
        await answer_all(part.router)
    await application.stop()
    for part in application.parts:
        assert part.router.state == "closed"
        check_balanced(part.router.stats())


async def test_components_that_stop_together() -> None:
    """All at once, each in a task of its own, and some of them twice."""
    application = Application()
    await application.start()
    async with anyio.create_task_group() as tasks:
        for part in (*application.parts, *application.parts[:2]):
            tasks.start_soon(part.stop)
    assert {part.router.state for part in application.parts} == {"closed"}


# -- Event loops that others run ------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_three_runs_of_a_runner(loop: str) -> None:
    """Opened in one, used in the next, closed in the third; another loop is refused meanwhile."""
    factory: Any = None if loop == "asyncio" else pytest.importorskip(loop).new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        r = runner.run(new_router().open())
        runner.run(answer_all(r))
        with asyncio.Runner(loop_factory=factory) as other:
            with pytest.raises(RouterStateError):
                other.run(answer_all(r))
            other.run(answer_all(other.run(new_router().open())))
        runner.run(answer_all(r))
        runner.run(r.close())
    check_balanced(r.stats())


def test_debug_mode(caplog: pytest.LogCaptureFixture) -> None:
    """In it, asyncio finds nothing to complain of."""

    async def main() -> None:
        async with new_router() as r:
            await answer_all(r)
            assert len(await r.submit_many([job()] * 100)) == 100

    asyncio.run(main(), debug=True)
    complaints = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert [text for text in complaints if "took" not in text and "selector" not in text] == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="they are new in Python 3.12")
def test_eager_tasks() -> None:
    """A task may have ended before whoever starts it goes on."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(
            asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
        )
        async with new_router() as r:
            await asyncio.gather(*(answer_all(r) for _ in range(5)))
            tickets = [r.submit_soon(job()) for _ in range(20)]
            assert {(await ticket.wait()).status for ticket in tickets} == {Status.COMPLETED}
        check_balanced(r.stats())

    asyncio.run(main())


def test_trio_as_a_guest() -> None:
    """Of asyncio's loop: the router is trio's, and its threads wake the host."""
    import trio

    ended: list[Any] = []

    async def guest() -> None:
        async with new_router() as r:
            await answer_all(r)
        check_balanced(r.stats())

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        ended.append(await done)

    asyncio.run(host())
    ended[0].unwrap()


# -- Notebooks ------------------------------------------------------------------------------------

CELLS = [
    """
    from helixnb import Job, Router
    from helixnb_kernels import HASH_MIX
    router = await Router(kernels=[HASH_MIX]).open()
    """,
    """
    job = Job(id=1, kind="HashMix", inputs=[1], compute_cost=10)
    values = {(await router.submit(job)).value for _ in range(3)}
    """,
    "ticket = router.submit_soon(job)",
    """
    values |= {(await ticket.wait()).value}
    values |= {outcome.value for outcome in await router.submit_many([job] * 5)}
    """,
    """
    await router.close()
    stats = router.stats()
    print(router.state, len(values), stats.completed, stats.in_flight)
    """,
]
CELLS = [textwrap.dedent(cell).strip() for cell in CELLS]


@pytest.mark.slow
def test_cells_of_ipython(tmp_path: Path) -> None:
    """Its shell runs each cell that awaits in one event loop, and none in between."""
    pytest.importorskip("IPython")
    code = f"""if True:
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        for cell in {CELLS!r}:
            shell.run_cell(cell).raise_error()
    """
    done = python("-W", "default", "-c", code, env={"IPYTHONDIR": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "closed 1 9 0" in done.stdout


@pytest.mark.slow
def test_cells_of_a_notebook(tmp_path: Path) -> None:
    """A kernel of Jupyter's runs each cell in a task of its own."""
    for name in ("ipykernel", "nbclient", "nbformat"):
        pytest.importorskip(name)
    code = f"""if True:
        import nbclient, nbformat
        cells = [nbformat.v4.new_code_cell(cell) for cell in {CELLS!r}]
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
        print(notebook.cells[-1].outputs[0].text)
    """
    env = {"IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    done = python("-W", "default", "-c", code, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "closed 1 9 0" in done.stdout


# -- Threads --------------------------------------------------------------------------------------


def test_a_threaded_server() -> None:
    """Each request has a thread of its own, and all share one router."""
    import urllib.request
    from concurrent.futures import ThreadPoolExecutor
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    class Server(ThreadingMixIn, WSGIServer):
        pass

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    def app(environ: Any, start_response: Any) -> list[bytes]:
        status = r.submit(job()).status
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [status.value.encode()]

    def ask(_: int) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}", timeout=20) as answer:
            body: bytes = answer.read()
        return body

    with (
        BlockingRouter(policy=Always(Strategy.CPU_POOL)) as r,
        ThreadPoolExecutor(8) as pool,
        make_server("127.0.0.1", 0, app, Server, Quiet) as server,
    ):
        pool.submit(server.serve_forever, 0.01)
        try:
            assert set(pool.map(ask, range(40))) == {b"completed"}
        finally:
            server.shutdown()
    check_balanced(r.stats())
