"""Kernels of the user's own, with jobs to go with them."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, cast

import helixnb_kernels
from helixnb._errors import JobError
from helixnb._records import Job
from helixnb_kernels import DerivedKernel, warm_up
from helixnb_kernels._values import brief, said_by

P = ParamSpec("P")
Function = Callable[..., Any]


class UserKernel(DerivedKernel):
    """A kernel that `kernel` made, ready for ``Router(kernels=[...])``."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self._ids = itertools.count()

    def __call__(
        self,
        inputs: Any = (),
        *,
        id: int = 0,  # noqa: A002  # the field's name
        compute_cost: int | None = None,
        **params: Any,
    ) -> Any:
        """Return the value that a job would have, computed here and now, without a router.

        Compiles the kernel if it is called before any router has opened with it. Takes some
        microseconds more than the job's run: for tests, and for trying things out.

        Parameters
        ----------
        inputs, compute_cost, params
            As of `job`.
        id
            As of `Job`.

        Raises
        ------
        JobError
            A field can't be, or `compute_cost` is left out although the kernel computes with it.
        TypeError, ValueError
            `inputs` or `params` don't fit.
        KernelError
            The kernel can't be compiled, its shared arrays aren't bound, or a global that it reads
            has changed since it was compiled.
        BaseException
            Whatever the kernel raises.
        """
        vector, numbers = self.as_inputs(inputs), self.as_params(params)
        job = self.job(vector, id=id, compute_cost=compute_cost, **params)
        if self.is_warm:
            self.check_reads(whole=False)
        else:
            warm_up([self], parallel=False)
        return self.solo_call(vector, job.compute_cost, job.id, numbers)()

    def job(
        self,
        inputs: Any = (),
        *,
        id: int | None = None,  # noqa: A002  # the field's name
        compute_cost: int | None = None,
        scaling_potential: float = 0.5,
        latency_budget_ms: float | None = None,
        **params: Any,
    ) -> Job:
        """Make a job of this kind; its inputs are converted here, by whoever calls this.

        Parameters
        ----------
        inputs, scaling_potential, latency_budget_ms
            As of `Job`.
        id
            Counted up from 0 if left out.
        compute_cost
            The kernel's `work` for that many inputs if left out.
        params
            The kernel's params, by name.

        Raises
        ------
        JobError
            A field can't be, `inputs` or `params` don't fit, or `compute_cost` is left out
            although the kernel computes with it.
        """
        try:
            inputs = self.as_inputs(inputs)
            if params or self._params:
                params = dict(zip(self._params, self.as_params(params), strict=True))
            if compute_cost is None and "compute_cost" not in self.arguments:
                steps = math.ceil(self.work(0, len(inputs)))
                compute_cost = steps if steps > 1 else 1  # noqa: FURB136  # max takes 0.1 us
        except Exception as error:  # the last runs code of the kernel's author
            raise JobError(f"kernel {brief(self.name)}: {said_by(error)}") from error
        if compute_cost is None:
            raise JobError(f"kernel {self.name} computes with compute_cost, so it must be given")
        return Job(
            id=next(self._ids) if id is None else id,
            kind=self.name,
            inputs=inputs,
            compute_cost=compute_cost,
            scaling_potential=scaling_potential,
            latency_budget_ms=latency_budget_ms,
            params=params,
            kernel_digest=self._digest or self.digest,
        )


def _with_jobs(
    make: Callable[P, Callable[[Function], DerivedKernel]],
) -> Callable[P, Callable[[Function], UserKernel]]:
    @functools.wraps(make)
    def kernel(*args: P.args, **options: P.kwargs) -> Callable[[Function], UserKernel]:
        if args:
            raise TypeError("kernel takes names: write @kernel(inputs=..., returns=...)")
        options["kernel_class"] = UserKernel
        decorate = make(*args, **options)
        return cast("Callable[[Function], UserKernel]", decorate)

    return kernel


kernel = _with_jobs(helixnb_kernels.kernel)
