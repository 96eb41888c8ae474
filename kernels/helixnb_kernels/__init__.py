"""Numba kernels that release the GIL, alone and in batches; usable without the router."""

from helixnb_kernels._columns import Columns
from helixnb_kernels._define import DerivedKernel, kernel
from helixnb_kernels._errors import KernelError
from helixnb_kernels._kernel import BatchResult, Kernel
from helixnb_kernels._threads import (
    max_threads,
    parallel_is_safe,
    parallel_region_is_free,
    threading_layer,
)
from helixnb_kernels._warm_up import warm_up
from helixnb_kernels.hash_mix import HASH_MIX, hash_mix
from helixnb_kernels.monte_carlo import MONTE_CARLO, monte_carlo_var
from helixnb_kernels.prime_count import PRIME_COUNT, prime_count

BUILT_IN = (HASH_MIX, PRIME_COUNT, MONTE_CARLO)
"""The kernels of a router that is given none."""

__all__ = [
    "BUILT_IN",
    "HASH_MIX",
    "MONTE_CARLO",
    "PRIME_COUNT",
    "BatchResult",
    "Columns",
    "DerivedKernel",
    "Kernel",
    "KernelError",
    "hash_mix",
    "kernel",
    "max_threads",
    "monte_carlo_var",
    "parallel_is_safe",
    "parallel_region_is_free",
    "prime_count",
    "threading_layer",
    "warm_up",
]
