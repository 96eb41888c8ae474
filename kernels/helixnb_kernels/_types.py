"""What kernels declare about their arrays and numbers: ``"float64[:]"``, ``"uint64[8]"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types

from helixnb_kernels._values import shown

DTYPES = {name: np.dtype(name) for name in ("uint64", "int64", "float64")}
_ARRAY = re.compile(r"(\w+)\[(\d+|:(?:,:)*)\]")


@dataclass(frozen=True, slots=True)
class Spec:
    """A number, or an array of numbers in C order.

    Attributes
    ----------
    dtype
        uint64, int64 or float64.
    ndim
        Dimensions; 0 for a number.
    length
        The number of elements of a one-dimensional array, None for any.
    """

    dtype: np.dtype[Any]
    ndim: int = 0
    length: int | None = None

    @classmethod
    def parse(cls, text: str, field: str) -> Spec:
        """Read a declaration.

        Raises
        ------
        ValueError
            It isn't one; the message names `field`.
        """
        if isinstance(text, str):
            name, ndim, length = text, 0, None
            if match := _ARRAY.fullmatch(text.replace(" ", "")):
                name, size = match.groups()
                ndim = size.count(":") or 1
                length = None if ":" in size else int(size)
            if name in DTYPES and length != 0:
                return cls(DTYPES[name], ndim, length)
        raise ValueError(
            f"{field} must be one of {', '.join(DTYPES)}, or an array of it such as 'float64[:]' "
            f"or 'float64[8]', got {shown(text)}"
        )

    @classmethod
    def number(cls, text: str, field: str) -> Spec:
        """Read the declaration of a number."""
        spec = cls.parse(text, field)
        if spec.ndim:
            raise ValueError(f"{field} must be a number, got {shown(text)}")
        return spec

    @classmethod
    def array(cls, text: str, field: str) -> Spec:
        """Read the declaration of an array."""
        spec = cls.parse(text, field)
        if not spec.ndim:
            raise ValueError(f"{field} must be an array, got {shown(text)}")
        return spec

    @classmethod
    def vector(cls, text: str, field: str) -> Spec:
        """Read the declaration of a one-dimensional array."""
        spec = cls.parse(text, field)
        if spec.ndim != 1:
            raise ValueError(f"{field} must be a one-dimensional array, got {shown(text)}")
        return spec

    @classmethod
    def result(cls, text: str, field: str) -> Spec:
        """Read the declaration of a number, or of an array of a fixed length."""
        spec = cls.parse(text, field)
        if spec.ndim and spec.length is None:
            raise ValueError(f"{field} must be a number or have a fixed length, got {shown(text)}")
        return spec

    def __str__(self) -> str:
        if self.ndim == 0:
            return self.dtype.name
        size = ",".join([":"] * self.ndim) if self.length is None else str(self.length)
        return f"{self.dtype.name}[{size}]"

    def numba(self, *, extra_dims: int = 0, readonly: bool = False) -> Any:
        """Return Numba's type for it, or for an array of so many more dimensions."""
        scalar = getattr(types, self.dtype.name)
        ndim = self.ndim + extra_dims
        return types.Array(scalar, ndim, "C", readonly=readonly) if ndim else scalar


UINT64_INPUTS = Spec(DTYPES["uint64"], ndim=1).numba(readonly=True)
"""The inputs of a built-in kernel, as each of its functions takes them: one type, so that what
the stand-alone function compiles is what the kernel calls."""
