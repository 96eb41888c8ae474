"""Ways in by what comes in: the exact values, or one line that says why not."""

from __future__ import annotations

import array
import collections
import ctypes
import dataclasses
import json
import math
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from helixnb import (
    BlockingRouter,
    Decision,
    Job,
    JobBlock,
    JobColumns,
    JobError,
    Kernel,
    Outcome,
    RouterConfig,
    StaticPolicy,
    Status,
    Strategy,
    kernel,
)
from helixnb_kernels import HASH_MIX

TOP = 2**64 - 1
SUBNORMAL = 5e-324
NAN = math.nan


class Seen:
    """What a job's kernel was given."""

    def __init__(self, inputs: Any, cost: int, job_id: int, number: float, shared: Any) -> None:
        self.inputs, self.cost, self.job_id = inputs, cost, job_id
        self.number, self.shared = number, shared


def _solo(inputs: Any, cost: int, job_id: int, number: float, shared: Any) -> Seen:
    return Seen(inputs.tolist(), cost, job_id, number, shared.tolist())


def _seen(name: str, dtype: str) -> Kernel:
    made = Kernel(
        name=name,
        solo=_solo,
        inputs=f"{dtype}[:]",
        arguments=("compute_cost", "job_id", "number", "shared"),
        params={"number": dtype},
        shared={"shared": f"{dtype}[:]"},
    )
    made.bind(shared=[0])
    return made


KERNELS = {dtype: _seen(dtype, dtype) for dtype in ("float64", "uint64", "int64")}


@kernel(inputs="float64[:]", returns="float64")
def float_sum(x: Any) -> Any:
    return x.sum()


@kernel(inputs="uint64[:]", returns="uint64")
def uint_sum(x: Any) -> Any:
    return x.sum()


@kernel(inputs="int64[:]", returns="int64")
def int_sum(x: Any) -> Any:
    return x.sum()


SUMS = {"float64": float_sum, "uint64": uint_sum, "int64": int_sum}


def _fail(cost: int, inputs: int) -> float:
    if cost == 13:
        raise ValueError("no\nwork\n" * 1_000)
    return np.float32(cost + inputs)  # type: ignore[return-value]  # as authors do


ODD_NAME = "odd\n" * 100
ODD = Kernel(
    name=ODD_NAME,
    solo=lambda inputs, cost, job_id: cost,
    work=_fail,
    ns_per_work=np.float32(10),  # type: ignore[arg-type]  # as authors do
)


@pytest.fixture(scope="module")
def router() -> Iterator[BlockingRouter]:
    """Give a router that runs anything."""
    with BlockingRouter(RouterConfig(cpu_parallelism=2), kernels=[*KERNELS.values(), ODD]) as made:
        yield made


class Tensor:
    """What a tensor of torch offers to NumPy, without torch."""

    def __init__(self, values: Any, grad: bool = False) -> None:
        self.values, self.grad = values, grad

    def __array__(self, dtype: Any = None) -> Any:
        if self.grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.\nUse detach().")
        return self.values if dtype is None else self.values.astype(dtype)

    def __repr__(self) -> str:
        raise RuntimeError("nobody asked for this")


class Interface:
    """An object with NumPy's older protocol."""

    def __init__(self, values: Any) -> None:
        self.values = values

    @property
    def __array_interface__(self) -> Any:
        return self.values.__array_interface__


def _pd(values: Any, dtype: Any = None, index: Any = None) -> Any:
    return pd.Series(values, dtype=dtype, index=index)


def _read_only(values: Any) -> Any:
    values.setflags(write=False)
    return values


def _unaligned() -> Any:
    return np.frombuffer(b"\0" + np.array([1.5, 2.0]).tobytes(), np.uint8)[1:].view(np.float64)


def _dictionary() -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([1, None]))


REFUSED: list[Any] | None = None
F, I = [1.0, 2.0], [1, 2]  # noqa: E741  # floats and integers

# What is given; then what kernels of float64 and of uint64 have of it, None for a refusal.
INPUTS: dict[str, tuple[Callable[[], Any], list[Any] | None, list[Any] | None]] = {
    "list of int": (lambda: [1, 2], F, I),
    "list of float": (lambda: [1.0, 2.0], F, REFUSED),
    "list of both": (lambda: [1, 2.0], F, REFUSED),
    "list of large": (lambda: [TOP, 1], [2.0**64, 1.0], [TOP, 1]),
    "list of NumPy's": (lambda: [np.uint64(TOP), 5], [2.0**64, 5.0], [TOP, 5]),
    "list of NumPy's floats": (lambda: [np.float16(1), np.float32(2)], F, REFUSED),
    "list of fractions": (lambda: [Fraction(1, 2), Decimal("0.25")], [0.5, 0.25], REFUSED),
    "list of 0-d": (lambda: [np.array(1), np.array(2)], F, I),
    "list of bool": (lambda: [True, False], REFUSED, REFUSED),
    "list of None": (lambda: [1, None], REFUSED, REFUSED),
    "list of NA": (lambda: [1, pd.NA], REFUSED, REFUSED),
    "list of NaT": (lambda: [1, pd.NaT], REFUSED, REFUSED),
    "list of str": (lambda: ["1", "2"], REFUSED, REFUSED),
    "list of dates": (lambda: [date(2026, 1, 1)], REFUSED, REFUSED),
    "list of timedelta64": (lambda: [np.timedelta64(1, "ns")], REFUSED, REFUSED),
    "list of complex": (lambda: [1j], REFUSED, REFUSED),
    "list with masked": (lambda: [np.ma.masked, 1], REFUSED, REFUSED),
    "list with masked 0-d": (lambda: [np.ma.masked_array(5, mask=True), 1], REFUSED, REFUSED),
    "list of huge": (lambda: [10**400], REFUSED, REFUSED),
    "list ragged": (lambda: [[1], [1, 2]], REFUSED, REFUSED),
    "list empty": (list, [], []),
    "tuple": (lambda: (1, 2), F, I),
    "range": (lambda: range(1, 3), F, I),
    "deque": (lambda: collections.deque([1, 2]), F, I),
    "array of Q": (lambda: array.array("Q", [1, TOP]), [1.0, 2.0**64], [1, TOP]),
    "array of d": (lambda: array.array("d", F), F, REFUSED),
    "array of u": (lambda: array.array("u", "ab"), REFUSED, REFUSED),
    "memoryview of d": (lambda: memoryview(array.array("d", F)), F, REFUSED),
    "memoryview of bytes": (lambda: memoryview(b"\1\2"), F, I),
    "memoryview of chars": (lambda: memoryview(b"12").cast("c"), REFUSED, REFUSED),
    "memoryview of bool": (lambda: memoryview(b"\1\0").cast("?"), REFUSED, REFUSED),
    "bytearray": (lambda: bytearray(b"\1\2"), F, I),
    "bytes": (lambda: b"\1\2", REFUSED, REFUSED),
    "str": (lambda: "12", REFUSED, REFUSED),
    "ctypes": (lambda: (ctypes.c_double * 2)(*F), F, REFUSED),
    "float16": (lambda: np.array([1.5, 6e-8], np.float16), [1.5, 2.0**-24], REFUSED),
    "float32": (lambda: np.array([0.1], np.float32), [0.10000000149011612], REFUSED),
    "float64": (lambda: np.array(F), F, REFUSED),
    "longdouble": (lambda: np.array(F, np.longdouble), REFUSED, REFUSED),
    "NaN": (lambda: np.array([NAN, math.inf, -math.inf]), [NAN, math.inf, -math.inf], REFUSED),
    "subnormal": (lambda: np.array([SUBNORMAL, -0.0]), [SUBNORMAL, -0.0], REFUSED),
    "uint8": (lambda: np.array(I, np.uint8), F, I),
    "int64": (lambda: np.array(I, np.int64), F, I),
    "int64 below 0": (lambda: np.array([-1, 2]), [-1.0, 2.0], REFUSED),
    "uint64": (lambda: np.array([1, TOP], np.uint64), [1.0, 2.0**64], [1, TOP]),
    "big-endian": (lambda: np.array(I, ">u8"), F, I),
    "big-endian float": (lambda: np.array(F, ">f8"), F, REFUSED),
    "strided": (lambda: np.arange(6.0)[1::3], [1.0, 4.0], REFUSED),
    "reversed": (lambda: np.array(I, np.uint64)[::-1], [2.0, 1.0], [2, 1]),
    "broadcast": (lambda: np.broadcast_to(np.uint64(1), (2,)), [1.0, 1.0], [1, 1]),
    "read-only": (lambda: _read_only(np.array(I, np.uint64)), F, I),
    "unaligned": (_unaligned, [1.5, 2.0], REFUSED),
    "bool": (lambda: np.array([True, False]), REFUSED, REFUSED),
    "complex": (lambda: np.array([1j]), REFUSED, REFUSED),
    "object": (lambda: np.array([1, 2], object), REFUSED, REFUSED),
    "string": (lambda: np.array(["1", "2"]), REFUSED, REFUSED),
    "datetime64": (lambda: np.array(["2026-01-01"], "M8[D]"), REFUSED, REFUSED),
    "structured": (lambda: np.array([(1, 2.0)], "i8,f8"), REFUSED, REFUSED),
    "masked": (lambda: np.ma.masked_array(F, [True, False]), REFUSED, REFUSED),
    "masked without mask": (lambda: np.ma.masked_array(I), REFUSED, REFUSED),
    "0-d": (lambda: np.array(5.0), REFUSED, REFUSED),
    "3-d": (lambda: np.zeros((2, 2, 2), np.uint64), REFUSED, REFUSED),
    "scalar": (lambda: np.float64(5), REFUSED, REFUSED),
    "number": (lambda: 5.0, REFUSED, REFUSED),
    "None": (lambda: None, REFUSED, REFUSED),
    "generator": (lambda: (each for each in I), REFUSED, REFUSED),
    "set": (lambda: {1, 2}, REFUSED, REFUSED),
    "dict": (lambda: {1: 2}, REFUSED, REFUSED),
    "pandas": (lambda: _pd(I, index=["type", "null_count"]), F, I),
    "pandas float": (lambda: _pd([1.0, NAN]), [1.0, NAN], REFUSED),
    "pandas Int64": (lambda: _pd(I, "Int64"), F, I),
    "pandas UInt64": (lambda: _pd([TOP, 1], "UInt64"), [2.0**64, 1.0], [TOP, 1]),
    "pandas Float64": (lambda: _pd(F, "Float64"), F, REFUSED),
    "pandas Int64 with NA": (lambda: _pd([1, None], "Int64"), REFUSED, REFUSED),
    "pandas Float64 with NA": (lambda: _pd([1, None], "Float64"), REFUSED, REFUSED),
    "pandas boolean": (lambda: _pd([True, False], "boolean"), REFUSED, REFUSED),
    "pandas category": (lambda: _pd(I, "category"), REFUSED, REFUSED),
    "pandas datetime": (lambda: _pd(pd.to_datetime(["2026-01-01"])), REFUSED, REFUSED),
    "pandas object": (lambda: _pd(I, object), REFUSED, REFUSED),
    "pandas string": (lambda: _pd(["1", "2"], "string"), REFUSED, REFUSED),
    "pandas Arrow": (lambda: _pd([TOP, 1], "uint64[pyarrow]"), [2.0**64, 1.0], [TOP, 1]),
    "pandas Arrow null": (lambda: _pd([1, None], "int64[pyarrow]"), REFUSED, REFUSED),
    "pandas Index": (lambda: pd.Index(I), F, I),
    "Polars": (lambda: pl.Series(I), F, I),
    "Polars UInt64": (lambda: pl.Series([TOP, 1], dtype=pl.UInt64), [2.0**64, 1.0], [TOP, 1]),
    "Polars in chunks": (lambda: pl.concat([pl.Series([1]), pl.Series([2])], rechunk=False), F, I),
    "Polars null": (lambda: pl.Series([1, None]), REFUSED, REFUSED),
    "Polars float null": (lambda: pl.Series([1.0, None]), REFUSED, REFUSED),
    "Polars bool": (lambda: pl.Series([True]), REFUSED, REFUSED),
    "Polars date": (lambda: pl.Series([date(2026, 1, 1)]), REFUSED, REFUSED),
    "Polars decimal": (lambda: pl.Series([Decimal("1.5")]), REFUSED, REFUSED),
    "Polars Int128": (lambda: pl.Series(I, dtype=pl.Int128), REFUSED, REFUSED),
    "Arrow": (lambda: pa.array(I), F, I),
    "Arrow uint64": (lambda: pa.array([TOP, 1], pa.uint64()), [2.0**64, 1.0], [TOP, 1]),
    "Arrow half": (lambda: pa.array([np.float16(1), np.float16(2)], pa.float16()), F, REFUSED),
    "Arrow in chunks": (lambda: pa.chunked_array([[1], [2]]), F, I),
    "Arrow sliced past a null": (lambda: pa.array([None, 1, 2]).slice(1), F, I),
    "Arrow null": (lambda: pa.array([1, None]), REFUSED, REFUSED),
    "Arrow chunks with null": (lambda: pa.chunked_array([[1.0], [None]]), REFUSED, REFUSED),
    "Arrow bool": (lambda: pa.array([True]), REFUSED, REFUSED),
    "Arrow dictionary with null": (_dictionary, REFUSED, REFUSED),
    "Arrow date": (lambda: pa.array([1], pa.date32()), REFUSED, REFUSED),
    "tensor": (lambda: Tensor(np.array(F, np.float32)), F, REFUSED),
    "tensor with grad": (lambda: Tensor(np.array(F), grad=True), REFUSED, REFUSED),
    "tensor of 0-d": (lambda: Tensor(np.array(5.0)), REFUSED, REFUSED),
    "tensor masked": (lambda: Tensor(np.ma.masked_array(F, [True, False])), REFUSED, REFUSED),
    "interface": (lambda: Interface(np.array(I)), F, I),
    "class": (lambda: np.ndarray, REFUSED, REFUSED),
}


def _job(kind: str, **fields: Any) -> Job:
    defaults: dict[str, Any] = {"id": 1, "compute_cost": 1, "params": {"number": 3}}
    fields = defaults | fields
    return Job(kind=kind, **fields)


def _block(router: BlockingRouter, kind: str, jobs: int = 1, **fields: Any) -> Any:
    defaults: dict[str, Any] = {"compute_cost": 1, "params": {"number": 3}}
    fields = defaults | fields
    fields.setdefault("inputs", np.empty((jobs, 0), np.uint64))
    return router.submit_many(JobColumns([JobBlock(kind, **fields)]))


def _length(values: Any) -> int:
    try:
        return len(values)
    except TypeError:
        return 2


def _by_job(router: BlockingRouter, kind: str, values: Any) -> Any:
    return router.submit(_job(kind, inputs=values)).value.inputs


def _by_ticket(router: BlockingRouter, kind: str, values: Any) -> Any:
    return router.submit_soon(_job(kind, inputs=values)).wait(5).value.inputs


def _by_list(router: BlockingRouter, kind: str, values: Any) -> Any:
    jobs = [_job(kind, inputs=[1, 2]), _job(kind, inputs=values)]
    return router.submit_many(jobs)[1].value.inputs


def _by_rows(router: BlockingRouter, kind: str, values: Any) -> Any:
    made = _block(router, kind, inputs=[values, values])
    assert repr(made[0].value.inputs) == repr(made[1].value.inputs)
    return made[0].value.inputs


def _by_offsets(router: BlockingRouter, kind: str, values: Any) -> Any:
    return _block(router, kind, inputs=values, offsets=[0, _length(values)])[0].value.inputs


def _by_params(router: BlockingRouter, kind: str, values: Any) -> Any:
    jobs = _length(values)
    made = _block(router, kind, jobs, params={"number": values})
    return [each.value.number for each in made]


def _by_bind(router: BlockingRouter, kind: str, values: Any) -> Any:
    try:
        KERNELS[kind].bind(shared=values)
    except (TypeError, ValueError) as error:
        raise JobError(_one_line(error)) from error
    return router.submit(_job(kind)).value.shared


def _by_k_job(router: BlockingRouter, kind: str, values: Any) -> Any:
    made: Any = SUMS[kind].job(values)
    return made.inputs.tolist()


WAYS = {
    "k.job": _by_k_job,
    "submit": _by_job,
    "ticket": _by_ticket,
    "list of jobs": _by_list,
    "rows": _by_rows,
    "offsets": _by_offsets,
    "params": _by_params,
    "bind": _by_bind,
}
# What one number stands for there holds for each job; and rows may be empty, or have a dimension.
ONE_FOR_ALL = {"0-d", "scalar", "number"}


def _one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable(), text
    assert 0 < len(text) <= 200, text
    return text


def _expected(way: str, given: str, kind: str) -> Any:
    _, floats, integers = INPUTS[given]
    if way == "params" and given in ONE_FOR_ALL:
        return [5.0, 5.0] if kind == "float64" else REFUSED
    return floats if kind == "float64" else integers


def outcome_of(router: BlockingRouter, way: str, given: str, kind: str) -> str:
    """Say what comes of an input by a way in: its values, or why it is refused."""
    before = router.stats().submitted
    try:
        return repr(WAYS[way](router, kind, INPUTS[given][0]()))
    except JobError as error:
        assert router.stats().submitted == before
        return f"refused: {_one_line(error)}"


@pytest.mark.parametrize("way", WAYS)
def test_each_is_right_or_refused_in_one_line(router: BlockingRouter, way: str) -> None:
    """To the last bit; nothing is submitted otherwise."""
    wrong = {}
    for given in INPUTS:
        for kind in ("float64", "uint64"):
            expected = _expected(way, given, kind)
            came = outcome_of(router, way, given, kind)
            if came.startswith("refused: ") if expected is REFUSED else came == repr(expected):
                continue
            wrong[given, kind] = came
    assert wrong == {}


@pytest.mark.parametrize("way", WAYS)
def test_integers_keep_every_bit(router: BlockingRouter, way: str) -> None:
    """From -2**63 to 2**64 - 1, also where NumPy would make floats of them."""
    for kind, values in {
        "uint64": [TOP, TOP - 1, 2**63, 2**53 + 1],
        "int64": [-(2**63), 2**63 - 1, -(2**53) - 1],
    }.items():
        for given in (
            values,
            [np.int64(each) if each < 2**63 else np.uint64(each) for each in values],
            np.array(values, kind),
            pd.Series(values, dtype=kind.replace("ui", "UI").replace("in", "In")),
            pl.Series(values, dtype=pl.UInt64 if kind == "uint64" else pl.Int64),
            pa.array(values, getattr(pa, kind)()),
        ):
            assert WAYS[way](router, kind, given) == values


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        memoryview,
        Tensor,
        Interface,
        pd.Series,
        lambda x: pl.Series(x, dtype=pl.Float64),
        pa.array,
        lambda x: array.array("d", x.tolist()),
    ],
)
def test_what_fits_is_not_copied(make: Callable[[Any], Any]) -> None:
    """The kernel reads the memory that the caller has."""
    given = make(np.arange(64.0))
    seen = np.asarray(given)
    made = JobBlock(
        "K",
        given,
        offsets=[0, *[64] * 64],
        compute_cost=1,
        latency_budget_ms=given,
        params={"p": given},
    )
    columns = made.inputs, made.latency_budget_ms, made.params["p"]
    job: Any = float_sum.job(given)
    for taken in (job.inputs, *columns):
        assert np.shares_memory(taken, seen)
        assert taken.ctypes.data == seen.ctypes.data


def test_tables_are_rows() -> None:
    """Of numbers without nulls, whatever the types of the columns."""
    tables: list[Any] = [
        pd.DataFrame({"a": [TOP, 1], "b": [2, 3]}).astype({"a": "uint64"}),
        pl.DataFrame({"a": [TOP, 1], "b": [2, 3]}, schema={"a": pl.UInt64, "b": pl.Int64}),
        pa.table({"a": pa.array([TOP, 1], pa.uint64()), "b": [2, 3]}),
    ]
    for table in tables:
        made = JobBlock("K", table, compute_cost=1)
        assert made.inputs.tolist() == [[TOP, 2], [1, 3]]
        assert made.inputs.dtype == np.uint64
    holes: list[Any] = [
        pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [2, 3]}),
        pl.DataFrame({"a": [1, None], "b": [2, 3]}),
        pa.table({"a": [1, None], "b": [2, 3]}),
        pd.DataFrame({"a": [True, False], "b": [2, 3]}),
    ]
    for table in holes:
        with pytest.raises(JobError, match=r"K: inputs must .* got"):
            JobBlock("K", table, compute_cost=1)


class Foreign:
    """An object whose array takes as long as somebody likes."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.threads: list[int] = []

    def __array__(self, dtype: Any = None) -> Any:
        self.threads.append(threading.get_ident())
        if not self.goes_on.wait(10):
            raise TimeoutError("the event loop stood still")
        return np.array([1.0, 2.0])


@pytest.mark.parametrize("call", ["submit", "submit_soon", "submit_many", "explain"])
def test_what_may_take_long_leaves_the_event_loop(router: BlockingRouter, call: str) -> None:
    """Another caller is served meanwhile, and what waits counts as latency."""
    values = Foreign()
    given: Any = _job("float64", inputs=values)
    done: list[Any] = []

    def submit() -> None:
        done.append(getattr(router, call)([given] if call == "submit_many" else given))

    waiting = threading.Thread(target=submit)
    waiting.start()
    while not values.threads:
        waiting.join(0.001)
    assert router.submit(_job("float64")).value.inputs == []
    assert not done
    values.goes_on.set()
    waiting.join(10)
    assert done
    if call == "submit":
        assert done[0].value.inputs == [1.0, 2.0]


class Rank(IntEnum):
    SECOND = 2


class Own(float):
    def __float__(self) -> float:
        return 7.0

    def __repr__(self) -> str:
        return "x\n" * 1_000


# What is given, and the integer and the float that it is; None for a refusal.
NUMBERS: dict[str, tuple[Any, int | None, float | None]] = {
    "int": (2, 2, 2.0),
    "float": (0.5, None, 0.5),
    "uint64": (np.uint64(1), 1, 1.0),
    "int8": (np.int8(1), 1, 1.0),
    "float16": (np.float16(0.5), None, 0.5),
    "float32": (np.float32(0.5), None, 0.5),
    "longdouble": (np.longdouble(0.5), None, 0.5),
    "Fraction": (Fraction(1, 2), None, 0.5),
    "Decimal": (Decimal("0.5"), None, 0.5),
    "IntEnum": (Rank.SECOND, 2, 2.0),
    "float of one's own": (Own(0.5), None, 0.5),
    "0-d": (np.array(1), 1, 1.0),
    "0-d float": (np.array(0.5, np.float32), None, 0.5),
    "bool": (True, None, None),
    "np.bool": (np.True_, None, None),
    "str": ("1", None, None),
    "long str": ("1\n" * 10_000, None, None),
    "complex": (1j, None, None),
    "timedelta64": (np.timedelta64(1, "ns"), None, None),
    "masked": (np.ma.masked, None, None),
    "masked 0-d": (np.ma.masked_array(1, mask=True), None, None),
    "NA": (pd.NA, None, None),
    "signalling NaN": (Decimal("sNaN"), None, None),
    "list": ([1, 2, 3], None, None),
    "object": (Tensor(np.array(1.0), grad=True), None, None),
}


def _decided(value: Any) -> Any:
    try:
        return Decision(Strategy.DROP, "r", value).retry_after_s
    except (TypeError, ValueError) as error:
        raise JobError(_one_line(error)) from error


def _of_block(router: BlockingRouter, field: str, value: Any) -> Any:
    block = JobBlock("K", np.empty((2, 0)), **{"compute_cost": 1, field: value})
    return getattr(block, field).tolist()[0]


FIELDS: dict[str, tuple[type, Callable[[BlockingRouter, Any], Any]]] = {
    "id": (int, lambda _, v: _job("K", id=v).id),
    "compute_cost": (int, lambda _, v: _job("K", compute_cost=v).compute_cost),
    "latency_budget_ms": (float, lambda _, v: _job("K", latency_budget_ms=v).latency_budget_ms),
    "k.job id": (int, lambda _, v: float_sum.job([], id=v).id),
    "k.job cost": (int, lambda _, v: float_sum.job([], compute_cost=v).compute_cost),
    "k.job budget": (float, lambda _, v: float_sum.job([], latency_budget_ms=v).latency_budget_ms),
    "block cost": (int, lambda r, v: _of_block(r, "compute_cost", v)),
    "block budget": (float, lambda r, v: _of_block(r, "latency_budget_ms", v)),
    "param": (float, lambda r, v: r.submit(_job("float64", params={"number": v})).value.number),
    "integer param": (int, lambda r, v: r.submit(_job("int64", params={"number": v})).value.number),
    "block param": (
        float,
        lambda r, v: _block(r, "float64", params={"number": v})[0].value.number,
    ),
    "run": (float, lambda r, v: r.run(int, compute_cost=1, latency_budget_ms=v).latency_budget_ms),
    "retry_after_s": (float, lambda _, v: _decided(v)),
    "queue_capacity": (int, lambda _, v: RouterConfig(queue_capacity=v).queue_capacity),
    "max_job_s": (float, lambda r, v: r.reconfigure(max_job_s=v).max_job_s),
}


@pytest.mark.parametrize("field", FIELDS)
def test_numbers_are_made_plain_once(router: BlockingRouter, field: str) -> None:
    """Whatever type they had; and what is no number is refused in one line that names the field."""
    kind, take = FIELDS[field]
    for given, integer, real in NUMBERS.values():
        expected = integer if kind is int else real
        if expected is None:
            with pytest.raises(ValueError, match="must") as caught:
                take(router, given)
            _one_line(caught.value)
        else:
            taken = take(router, given)
            assert (type(taken), taken) == (kind, expected)
    router.reconfigure(max_job_s=30)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r: r.submit(_job("x\n" * 1_000)),
        lambda r: r.submit(Job(id=TOP, kind=ODD_NAME, compute_cost=1, inputs=[1] * 9_999 + ["x"])),
        lambda r: r.submit(Job(id=TOP, kind=ODD_NAME, compute_cost=13)),
        lambda r: r.submit_many([Job(id=TOP, kind=ODD_NAME, compute_cost=13)]),
        lambda r: r.submit_many([Job(id=TOP, kind=ODD_NAME, compute_cost=1, inputs=["x"])]),
        lambda r: r.submit(
            Job(id=1, kind=ODD_NAME, compute_cost=1, params={"\n5": 1, "x" * 999: 2})
        ),
        lambda r: r.submit(_job("float64", params={"number": "x\n" * 999})),
        lambda r: r.submit(_job("float64", params={"number": Tensor(None)})),
        lambda r: _job("K", params=Tensor(None)),
        lambda r: _job(Tensor(None)),  # type: ignore[arg-type]
        lambda r: JobBlock(ODD_NAME, [[1]], compute_cost="x\n" * 999),
        lambda r: JobBlock(ODD_NAME, [[1]], compute_cost=1, params={"p\n" * 99: ["x\n" * 99]}),
        lambda r: JobBlock(ODD_NAME, [[1]], compute_cost=1, params=5),  # type: ignore[arg-type]
        lambda r: JobBlock("K", [[[1]]], compute_cost=1),
        lambda r: JobBlock("K", 5, compute_cost=1),
        lambda r: JobBlock("K", [1, [2]], offsets=[0, 2], compute_cost=1),
        lambda r: JobBlock("K", [1, 2], offsets=np.ma.masked_array([0, 2]), compute_cost=1),
        lambda r: JobBlock("K", [1, 2], offsets=[0, 2.0], compute_cost=1),
        lambda r: JobBlock("K", [[1]], compute_cost=[None]),
        lambda r: JobBlock("K", [[1]], compute_cost=1, id=np.ma.masked_array([0])),
        lambda r: JobBlock("K", [[1]], compute_cost=1, latency_budget_ms=pl.Series([None])),
        lambda r: JobColumns(5),  # type: ignore[arg-type]
        lambda r: JobColumns([Tensor(None)]),  # type: ignore[list-item]
        lambda r: JobColumns([JobBlock("K", [[1]], compute_cost=1)], np.ma.masked_array([0])),
        lambda r: JobColumns([JobBlock("K", [[1]], compute_cost=1)], 5),
        lambda r: JobColumns([JobBlock("K", [[1]] * 999, compute_cost=1)], list(range(1, 1_000))),
        lambda r: float_sum.job(5.0),
        lambda r: float_sum.job([], price="x" * 999),
        lambda r: r.run(int, compute_cost="x\n" * 999),
        lambda r: r.run(int, compute_cost=1, kind=Tensor(None)),
    ],
)
def test_each_error_about_a_job_is_one_line(
    router: BlockingRouter, wrong: Callable[[BlockingRouter], Any]
) -> None:
    """A `JobError`, whatever was given, is called, or says of itself."""
    with pytest.raises(JobError) as caught:
        wrong(router)
    _one_line(caught.value)


def _plain_parts(value: Any, where: str) -> Iterator[str]:
    """Name what isn't plain in a record: what JSON wouldn't take, or pickle only with NumPy."""
    if isinstance(value, (Strategy, Status)) or type(value) in (int, float, str, bool, type(None)):
        return
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _plain_parts(key, f"{where}: {key!r}")
            yield from _plain_parts(each, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _plain_parts(each, f"{where}[...]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _plain_parts(getattr(value, field.name), f"{where}.{field.name}")
    else:
        yield f"{where} is {type(value)}"


class Odd:
    """A policy that chooses one strategy, and speaks in NumPy's numbers."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def decide(self, *seen: Any) -> Decision:
        later = np.float32(1.5) if self.strategy is Strategy.DROP else None
        return Decision(self.strategy, "odd", later)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [None, *map(Odd, Strategy)])
def test_what_goes_out_is_plain(policy: Any) -> None:
    """Every field of what a router gives, whatever types came in, by each way to submit."""
    config = RouterConfig(
        cpu_parallelism=np.int64(2),  # type: ignore[arg-type]  # what people have
        hop_us=np.float16(60),  # type: ignore[arg-type]
        drain_timeout_s=Fraction(5),  # type: ignore[arg-type]
    )
    given: dict[str, Any] = {
        "id": np.uint64(TOP),
        "compute_cost": np.int32(640),
        "scaling_potential": np.float16(0.5),
    }
    kinds = ("HashMix", ODD_NAME)
    with BlockingRouter(
        config, kernels=[HASH_MIX, ODD], policy=policy, shadow=StaticPolicy()
    ) as router:
        outcomes: list[Outcome] = []
        budgets_ms: list[Any] = [None, np.float16(0), np.float32(10_000)]
        for budget_ms in budgets_ms:
            jobs = [
                Job(kind=kind, inputs=[1], latency_budget_ms=budget_ms, **given)
                for kind in kinds
                for _ in range(12)
            ]
            outcomes += [router.submit(each) for each in jobs]
            outcomes += [router.submit_soon(each).wait(5) for each in jobs]
            outcomes += router.submit_many(jobs)
            columns = [
                JobBlock(kind, [[1]] * 3, latency_budget_ms=budget_ms, **given) for kind in kinds
            ]
            outcomes += router.submit_many(JobColumns(columns))
            fields = given | {"latency_budget_ms": budget_ms}
            del fields["id"]
            outcomes.append(router.run(int, **fields))
        explained = [router.explain(each) for each in jobs]
        with router.watch(np.int64(9)) as watch:  # type: ignore[arg-type]
            router.submit_many(jobs)
            router.submit(jobs[0])
        stats = router.stats()
        given_out = (outcomes, explained, watch.latest(), stats, router.config, router.metrics())
    assert {part for record in given_out for part in _plain_parts(record, "it")} == set()
    assert json.loads(json.dumps(stats.as_dict()))["submitted"] == stats.submitted
    assert b"numpy" not in pickle.dumps([dataclasses.asdict(each) for each in explained])
