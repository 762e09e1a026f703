"""Numbers, times and arrays as a user gives them: of any type that has one, or refused."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.base.errors import UserError
from undiffuse.base.lazy import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = lazy("torch")

MOST_IMAGES = 10_000_000  # images of one request: 8 GB of MNIST's size


def as_tensor(name: str, value: Any) -> Tensor:
    """An array of any kind as a tensor. name: of the parameter, for errors.

    Raises UserError for what is no array of numbers."""
    try:
        if not isinstance(value, torch.Tensor):
            value = np.ascontiguousarray(value)
            native = value.dtype.newbyteorder("=")
            # A tensor of an array that may not be written is warned of.
            value = torch.from_numpy(value.astype(native, copy=not value.flags.writeable))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{name} must be an array or a tensor of numbers") from None
    found: Tensor = value
    return found


def as_times(t: Any, count: int, *, zero: bool = False) -> Tensor:
    """Times as float64 (count,). t: one time, or one for each of `count` images.

    zero: whether 0, the time of the data, is allowed. Raises UserError for other times."""
    found = as_tensor("t", t).to(torch.float64)
    if found.shape not in ((), (1,), (count,)):
        raise UserError(f"t must be one time, or {count} of them, not {tuple(found.shape)}")
    inside = (found <= 1) & (found >= 0 if zero else found > 0)
    if not inside.all():
        wrong = found[~inside][0].item()
        raise UserError(f"t must be in {'[' if zero else '('}0, 1], not {wrong:g}")
    return found.expand(count)


def whole(name: str, value: Any) -> int:
    """A whole number of any type that has one: of Python, NumPy or torch.

    name: of the parameter, for errors. Raises UserError for anything else."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserError(f"{name} must be a whole number, not {value!r}")
    return operator.index(value)


def real(name: str, value: Any) -> float:
    """A number as a float. name: of the parameter. Raises UserError for anything else."""
    if isinstance(value, str | bool) or not hasattr(value, "__float__"):
        raise UserError(f"{name} must be a number, not {value!r}")
    return float(value)


def two_reals(name: str, value: Any) -> tuple[float, float]:
    """A pair of numbers as floats. name: of the parameter. Raises UserError for anything else."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise UserError(f"{name} must be two numbers, not {value!r}")
    first, second = value
    return real(name, first), real(name, second)


def check_numbers(n: int, seed: int) -> None:
    """Raises UserError for more images than a request may have, or for a seed out of range."""
    if n > MOST_IMAGES:
        raise UserError(f"n must be at most {MOST_IMAGES:,}, not {n:,}; use another seed for more")
    if not (hasattr(seed, "__index__") and 0 <= seed < 2**63):
        raise UserError(f"seed must be a number from 0 to 2^63 - 1, not {seed}")
