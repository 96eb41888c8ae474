"""Warm kernels up, and print how often each of their forms was read from the disk cache.

They are as small as can be, since compiling them takes the time: one as users make them, with its
parallel form if the argument is "parallel", and a function of the package's own, whose cache has
another key.
"""

from __future__ import annotations

import sys
from typing import Any

from helixnb_kernels import hash_mix, kernel, reference, warm_up
from helixnb_kernels.hash_mix import _chain


@kernel(returns="uint64")
def first(inputs: Any, job_id: Any) -> Any:
    return inputs[0] + job_id


parallel = sys.argv[1:] == ["parallel"]
warm_up([first], parallel=parallel)
row = first.as_inputs([2])
assert first.solo_call(row, 1, 5)() == 7
assert first.run_batch([row], [1], [5]).values == [7]
assert hash_mix([1, 2], 10) == reference.hash_mix([1, 2], 10)
chain: Any = _chain
forms = first.forms(parallel=parallel)
# One number, since they are all the same.
print(*{sum(form.stats.cache_hits.values()) for form in (*forms, chain.dispatcher)})
