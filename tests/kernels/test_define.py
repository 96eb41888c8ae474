"""@kernel: one scalar function becomes a kind of job."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import python

from helixnb_kernels import KernelError, kernel, parallel_is_safe, warm_up


@kernel(inputs="float64[:]", returns="float64", params={"power": "int64"})
def moment(inputs: Any, power: Any) -> Any:
    """Add up powers; refuse an empty vector."""
    if len(inputs) == 0:
        raise ValueError("no inputs")
    total = 0.0
    for x in inputs:
        total += x**power
    return total


@kernel(
    inputs="float64[3]",
    returns="float64[2]",
    shared={"weights": "float64[:,:]", "bias": "float64[2]"},
)
def layer(inputs: Any, bias: Any, weights: Any, out: Any) -> None:
    """Multiply a fixed-length row by shared weights; fill a result of two numbers."""
    for k in range(2):
        total = bias[k]
        for j in range(3):
            total += inputs[j] * weights[j, k]
        out[k] = total


@kernel(returns="uint64")
def seeded(inputs: Any, job_id: Any, compute_cost: Any) -> Any:
    """Take the reserved arguments in another order than the router's."""
    x = job_id * np.uint64(1_000_003) ^ compute_cost
    for v in inputs:
        x += v
    return x


WEIGHTS = np.arange(6.0).reshape(3, 2)
FLOATS = st.floats(-1e3, 1e3)


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    layer.bind(weights=WEIGHTS, bias=[0.5, -0.5])
    warm_up([moment, layer, seeded])


@given(st.lists(st.lists(FLOATS, max_size=6), max_size=12), st.integers(0, 5))
def test_a_batch_is_its_solo_runs(rows: list[list[float]], power: int) -> None:
    """The derived batch gives the bits of solo runs, and names exactly the jobs that raise."""
    inputs = [moment.as_inputs(row) for row in rows]
    params = [moment.as_params({"power": power})] * len(rows)
    ones = [1] * len(rows)
    for threads in (1, 2, 5):
        result = moment.run_batch(inputs, ones, ones, params, threads=threads)
        assert result.failed == [i for i, row in enumerate(rows) if not row]
        for i, row in enumerate(inputs):
            if len(row):
                assert result.values[i] == moment.solo_call(row, 1, 1, params[i])()
            else:
                with pytest.raises(ValueError, match="no inputs"):
                    moment.solo_call(row, 1, 1, params[i])()


def test_rows_of_fixed_length_and_results_of_several_numbers() -> None:
    """Solo and batched, each job has its own result array."""
    rows = [[float(i), 1.0, 2.0] for i in range(9)]
    expected = np.array(rows) @ WEIGHTS + [0.5, -0.5]
    inputs = [layer.as_inputs(row) for row in rows]
    solo = [layer.solo_call(row, 1, 1)() for row in inputs]
    batch = layer.run_batch(inputs, [1] * 9, [1] * 9, threads=2).values
    np.testing.assert_allclose(solo, expected)
    assert np.array_equal(solo, batch)
    batch[0][0] = 99.0
    assert batch[1][0] != 99.0


def test_reserved_arguments_come_by_name() -> None:
    """compute_cost and job_id are what they are called, wherever they stand, to the last bit."""
    job_id, cost = 2**64 - 1, 2**63 + 5
    expected = ((job_id * 1_000_003 ^ cost) + 7) % 2**64
    inputs = seeded.as_inputs([7])
    assert seeded.solo_call(inputs, cost, job_id)() == expected
    assert seeded.run_batch([inputs], [cost], [job_id]).values == [expected]


def test_parallel_batches_are_balanced_by_weight() -> None:
    """Each job runs once, whatever the weights say."""
    inputs = [seeded.as_inputs([i]) for i in range(100)]
    ids = list(range(100))
    expected = [seeded.solo_call(inputs[i], 1, i)() for i in ids]
    heavy_first: list[float] = [1e9] + [1.0] * 99
    nothing = [0.0] * 100
    for weights in (heavy_first, heavy_first[::-1], nothing, None):
        result = seeded.run_batch(inputs, [1] * 100, ids, threads=4, weights=weights)
        assert result.values == expected
        assert result.parallel is parallel_is_safe()


def test_swapping_shared_arrays() -> None:
    """New arrays count from the next run on; what was passed in stays the caller's."""
    row = layer.as_inputs([1.0, 0.0, 0.0])
    mine = np.full((3, 2), 2.0)
    layer.bind(weights=mine, bias=[0.0, 0.0])
    mine[:] = 5.0
    assert layer.solo_call(row, 1, 1)().tolist() == [2.0, 2.0]
    layer.bind(bias=[1.0, 1.0])
    assert layer.run_batch([row], [1], [1]).values[0].tolist() == [3.0, 3.0]
    layer.bind(weights=WEIGHTS, bias=[0.5, -0.5])


def test_a_run_never_sees_a_mixture_of_shared_arrays() -> None:
    """Under constant swapping each answer belongs to one binding."""
    row = layer.as_inputs([1.0, 1.0, 1.0])
    stop = threading.Event()

    def bind(k: float) -> None:  # whatever k, weights and bias of one binding cancel out
        layer.bind(weights=np.full((3, 2), k), bias=np.full(2, -3.0 * k))

    def swap() -> None:
        k = 1.0
        while not stop.is_set():
            k += 1.0
            bind(k)

    bind(1.0)
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(500):
            assert layer.solo_call(row, 1, 1)().tolist() == [0.0, 0.0]
            values = layer.run_batch([row] * 5, [1] * 5, [1] * 5).values
            assert [value.tolist() for value in values] == [[0.0, 0.0]] * 5
    finally:
        stop.set()
        thread.join()
        layer.bind(weights=WEIGHTS, bias=[0.5, -0.5])


def test_a_job_that_raises_leaks_nothing() -> None:
    """Neither its inputs nor shared arrays gain references, solo or batched."""
    empty = np.empty(0)
    inputs = [empty, moment.as_inputs([1.0])]
    params = moment.as_params({"power": 2})
    before = sys.getrefcount(empty), sys.getrefcount(inputs[1])
    for _ in range(50):
        assert moment.run_batch(inputs, [1, 1], [1, 1], [params] * 2, threads=2).failed == [0]
        with pytest.raises(ValueError, match="no inputs"):
            moment.solo_call(empty, 1, 1, params)()
    assert (sys.getrefcount(empty), sys.getrefcount(inputs[1])) == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layer.as_inputs([1.0, 2.0]), ValueError, "inputs must have 3 elements, got 2"),
        (lambda: moment.as_inputs(["x"]), TypeError, r"inputs\[0\] must be a real number, got 'x'"),
        (lambda: moment.as_inputs([True]), TypeError, r"inputs\[0\] must be a real number"),
        (lambda: moment.as_inputs([10**400]), ValueError, r"inputs\[0\] must fit a float64"),
        (
            lambda: moment.as_inputs(np.array([1j])),
            TypeError,
            r"must have a real dtype .*, got complex",
        ),
        (lambda: moment.as_params({}), ValueError, "params must be power, got none"),
        (lambda: moment.as_params({"p": 1}), ValueError, "params must be power, got p"),
        (lambda: seeded.as_params({"p": 1}), ValueError, "params must be none, got p"),
        (lambda: moment.as_params({"power": 1.5}), TypeError, r"params\['power'\] must be an int"),
        (
            lambda: moment.as_params({"power": 2**63}),
            ValueError,
            r"must lie in -2\*\*63 .. 2\*\*63",
        ),
        (
            lambda: layer.bind(bias=[1.0]),
            ValueError,
            r"bias must be float64\[2\], got shape \(1,\)",
        ),
        (lambda: layer.bind(bias=[1j, 2]), TypeError, r"bias\[0\] must be a real .*, got 1j"),
        (lambda: layer.bind(bias=[True, 2]), TypeError, r"bias\[0\] must be a real .*, got True"),
        (lambda: layer.bind(bias=np.ma.masked_array([1.0, 2.0])), TypeError, "not be masked"),
        (lambda: moment.as_inputs([np.longdouble("1e4000")]), ValueError, "fit a float64"),
        (lambda: layer.bind(b=[1.0]), ValueError, "shared arrays are weights, bias, got 'b'"),
    ],
)
def test_what_a_job_brings_is_checked(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """Wrong inputs, params and shared arrays are refused by name."""
    with pytest.raises(error, match=message):
        call()


def test_float_inputs_take_any_real_numbers() -> None:
    """Integers, NumPy numbers and other float dtypes are converted once."""
    given: list[Any] = [[1, 2.5], [np.float32(1), np.int8(2)], np.array([1, 2], "f4"), range(3)]
    for values in given:
        converted = moment.as_inputs(values)
        assert converted.dtype == np.float64
        assert converted.tolist() == [float(value) for value in values]


# -- Misuse, refused where it is defined or warmed up -----------------------------------------


def one(inputs: Any) -> Any:
    return inputs[0]


def with_extra(inputs: Any, rate: Any) -> Any:
    return inputs[0] * rate


def with_default(inputs: Any, *rest: Any) -> Any:
    return inputs[0]


def takes_nothing() -> int:
    return 1


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (
            with_extra,
            {},
            KernelError,
            r"test_define.py:\d+\) must take only compute_cost, job_id .*: declare",
        ),
        (one, {"params": {"rate": "float64"}}, KernelError, "doesn't take 'rate', which is decl"),
        (with_default, {}, KernelError, r"must take plain arguments only, but takes \*rest"),
        (takes_nothing, {}, KernelError, "must take the inputs first, but takes nothing"),
        (one, {"returns": "float64[2]"}, KernelError, "must take `out` last"),
        (one, {"returns": "float32"}, ValueError, "returns must be one of uint64, int64, float64"),
        (
            one,
            {"returns": "float64[:]"},
            ValueError,
            "returns must be a number or have a fixed length",
        ),
        (one, {"inputs": "float64"}, ValueError, "inputs must be a one-dimensional array"),
        (one, {"inputs": "float64[0]"}, ValueError, "inputs must be one of"),
        (one, {"inputs": 5}, ValueError, "inputs must be one of .*, got 5"),
        (with_extra, {"params": {"rate": "float64[:]"}}, ValueError, "must be a number"),
        (with_extra, {"shared": {"rate": "float64"}}, ValueError, "must be an array"),
        (one, {"params": {"out": "float64"}}, KernelError, "'out' can't be the name of a param"),
        (one, {"params": {"class": "float64"}}, KernelError, "'class' can't be the name"),
        (one, {"ns_per_work": 0}, ValueError, "ns_per_work must be more than 0, got 0"),
    ],
)
def test_a_definition_that_cant_be(
    function: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """It is refused where it stands, with the function's file and line."""
    declared = {"inputs": "float64[:]", "returns": "float64"} | options
    with pytest.raises(error, match=message):
        kernel(**declared)(function)


def test_a_wrong_result_type_fails_at_warm_up() -> None:
    """A float where an integer was declared isn't cut off in silence."""
    declared = kernel(inputs="float64[:]", returns="int64")(one)
    with pytest.raises(KernelError, match=r"one \(.*test_define.py:\d+\) must return int64, but"):
        warm_up([declared])


def test_what_numba_cant_compile_fails_at_warm_up() -> None:
    """The message points at the user's own line."""

    def uses_a_dict_of_anything(inputs: Any) -> Any:
        return {"a": 1, 2: inputs}["a"].nonsense

    broken = kernel(inputs="float64[:]", returns="float64")(uses_a_dict_of_anything)
    with pytest.raises(KernelError, match=r"can't compile .*test_define.py:\d+") as caught:
        warm_up([broken])
    assert "nonsense" in str(caught.value)


def test_unbound_shared_arrays_fail_at_warm_up() -> None:
    """A kernel that could not run isn't taken."""

    @kernel(inputs="float64[:]", returns="float64", shared={"w": "float64[:]"})
    def dot(inputs: Any, w: Any) -> Any:
        return inputs[0] * w[0]

    with pytest.raises(
        KernelError, match=r"kernel dot: bind its shared arrays first: bind\(w=\.+\)"
    ):
        warm_up([dot])


def test_what_isnt_a_plain_function() -> None:
    """A class, a builtin, a coroutine function or somebody's njit options are refused."""

    async def later(inputs: Any) -> Any:
        return inputs[0]

    make = kernel(inputs="float64[:]", returns="float64")
    for wrong in (int, len, moment, 5):
        with pytest.raises(KernelError, match="must be made of a plain function, got"):
            make(wrong)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="not async or a generator"):
        make(later)
    with pytest.raises(KernelError, match=r"test_define.py:\d+\): kernels set the options of njit"):
        make(numba.njit(fastmath=True)(one))
    assert make(numba.njit(one)).name == "one"


def test_writing_to_inputs_fails_at_warm_up() -> None:
    """A caller's array is never changed behind its back."""

    @kernel(inputs="float64[:]", returns="float64")
    def careless(inputs: Any) -> Any:
        inputs[0] += 1.0
        return inputs[0]

    with pytest.raises(KernelError, match=r"can't compile .*careless"):
        warm_up([careless])


def test_a_constant_result_of_the_declared_type() -> None:
    """A literal counts as its type."""

    @kernel(inputs="float64[:]", returns="int64")
    def always_one(inputs: Any) -> Any:
        return 1

    warm_up([always_one], parallel=False)
    assert always_one.solo_call(always_one.as_inputs([]), 1, 1)() == 1


def test_a_call_before_warm_up_does_no_harm() -> None:
    """It is refused, rather than compiled for other types that later calls would run with."""

    @kernel(returns="uint64")
    def half(inputs: Any, compute_cost: Any) -> Any:
        return compute_cost // np.uint64(2)

    row = half.as_inputs([2])
    with pytest.raises(TypeError, match="No matching definition"):
        half.solo_call(row, 6, 1)()
    warm_up([half], parallel=False)
    for cost in (6, 2**64 - 1):
        assert half.solo_call(row, cost, 1)() == cost // 2
        assert half.run_batch([row], [cost], [1]).values == [cost // 2]


def test_a_result_of_several_numbers_starts_at_zero() -> None:
    """What a function leaves alone is 0, solo and batched."""

    @kernel(inputs="float64[:]", returns="float64[3]")
    def sparse(inputs: Any, out: Any) -> None:
        out[1] += inputs[0]

    warm_up([sparse], parallel=False)
    row = sparse.as_inputs([5.0])
    for _ in range(20):
        assert sparse.solo_call(row, 1, 1)().tolist() == [0.0, 5.0, 0.0]
    assert sparse.run_batch([row], [1], [1]).values[0].tolist() == [0.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"costs": [1]}, "costs must have one element a job, 2, got 1"),
        ({"ids": [1, 2, 3]}, "ids must have one element a job, 2, got 3"),
        ({"params": []}, "params must have one element a job, 2, got 0"),
        ({"weights": [1.0]}, "weights must have one element a job, 2, got 1"),
    ],
)
def test_columns_of_other_lengths(lengths: dict[str, Any], message: str) -> None:
    """Compiled code would read past their ends."""
    rows = [moment.as_inputs([1.0])] * 2
    columns: dict[str, Any] = {"costs": [1, 1], "ids": [1, 1], "params": [(2,)] * 2} | lengths
    with pytest.raises(ValueError, match=message):
        moment.run_batch(rows, **columns)


def test_bindings_of_several_threads_all_count() -> None:
    """Two threads that bind an array each don't undo each other's."""
    rounds = 200

    def bind(name: str, shape: Any) -> None:
        for k in range(rounds):
            layer.bind(**{name: np.full(shape, float(k))})

    threads = [
        threading.Thread(target=bind, args=each) for each in (("weights", (3, 2)), ("bias", 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = float(rounds - 1)
    row = layer.as_inputs([1.0, 0.0, 0.0])
    assert layer.solo_call(row, 1, 1)().tolist() == [2 * last, 2 * last]
    layer.bind(weights=WEIGHTS, bias=[0.5, -0.5])


def test_work_that_isnt_a_number_of_steps() -> None:
    """A negative or undefined prediction is an error, not a free pass."""
    lazy = kernel(inputs="float64[:]", returns="float64", work=lambda cost, n: -1.0)(one)
    with pytest.raises(ValueError, match=r"kernel one: work must be 0 or more, got -1.0"):
        lazy.predict_ns(1, 1)


def test_a_hand_written_batch() -> None:
    """It replaces the derived form; with other arguments it is refused."""

    @kernel(inputs="float64[:]", returns="float64", name="Double")
    def double(inputs: Any) -> Any:
        return inputs[0] * 2.0

    @double.batch(parallel=False)
    def _batch(inputs: Any, offsets: Any, parts: Any, failed: Any, out: Any) -> None:
        for i in range(len(out)):
            if offsets[i] == offsets[i + 1]:
                failed[i] = 1
            else:
                out[i] = inputs[offsets[i]] * 2.0

    warm_up([double])
    rows = [double.as_inputs(row) for row in ([1.0], [], [3.0, 9.0])]
    result = double.run_batch(rows, [1] * 3, [1] * 3, threads=2)
    assert (result.values[0], result.values[2], result.failed) == (2.0, 6.0, [1])
    assert not result.parallel
    with pytest.raises(KernelError, match=r"must take \(inputs, offsets, parts, failed, out\)"):
        double.batch()(lambda inputs, out: None)


def test_defining_a_function_again_is_legal() -> None:
    """As in a notebook's cell: the new kernel has the new code."""

    def define(factor: float) -> Any:
        @kernel(inputs="float64[:]", returns="float64", name="Scale")
        def scale(inputs: Any) -> Any:
            return inputs[0] * factor

        warm_up([scale], parallel=False)
        return scale

    for factor in (2.0, 3.0):
        scale = define(factor)
        assert scale.solo_call(scale.as_inputs([5.0]), 1, 1)() == 5.0 * factor


PROGRAM = """
import sys
import numpy as np
from helixnb_kernels import kernel, warm_up
from numba import njit

FACTOR = {factor}

@njit
def helper(x):
    return x * {helper}

@kernel(inputs="float64[:]", returns="float64")
def user(inputs):
    return helper(inputs[0]) * FACTOR

warm_up([user], parallel=False)
hits = [sum(form.stats.cache_hits.values()) for form in user.forms(parallel=False)]
row = user.as_inputs([1.0])
values = user.solo_call(row, 1, 1)(), user.run_batch([row], [1], [1]).values[0]
print(min(hits), *values)
"""


@pytest.mark.slow
def test_the_disk_cache_of_a_users_kernel(tmp_path: Path) -> None:
    """A second process reads it; a changed global, callee or file never gets old code."""
    env = {"HELIXNB_CACHE_DIR": str(tmp_path / "cache")}
    script = tmp_path / "user.py"

    def run(factor: float, helper: float) -> list[float]:
        script.write_text(PROGRAM.format(factor=factor, helper=helper))
        done = python(str(script), env=env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return [float(word) for word in done.stdout.split()]

    assert run(2.0, 3.0) == [0, 6.0, 6.0]
    assert run(2.0, 3.0) == [1, 6.0, 6.0]
    assert run(5.0, 3.0) == [0, 15.0, 15.0]
    assert run(5.0, 7.0) == [0, 35.0, 35.0]
    assert run(2.0, 3.0) == [1, 6.0, 6.0]
