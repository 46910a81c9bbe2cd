"""Checks of what callers pass in, so that every bad argument gives one line that names it."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, TypeGuard

from specdec.errors import InvalidInputError


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is a whole number, of Python or NumPy; ``True`` and ``2.0`` are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, low: int, high: int, wanted: str) -> int:
    """``value`` as an ``int`` if it is a whole number in low..high.

    Raises:
        InvalidInputError: It is not; the message says what is ``wanted``.
    """
    if not is_whole(value) or not low <= value <= high:
        raise InvalidInputError(f"{name} is {shown(value)}; it must be {wanted}")
    return int(value)


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise InvalidInputError unless ``value`` is a finite number in low..high."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not (real and math.isfinite(value) and low <= value <= high):
        bounds = f"in {low:g}..{high:g}" if math.isfinite(high) else f"at least {low:g}"
        wanted = "a finite number" if math.isinf(low) else bounds
        raise InvalidInputError(f"{name} is {shown(value)}; it must be {wanted}")


def shown(value: Any) -> str:
    """A value in a message: one line, and not a long one."""
    text = " ".join((str(value) if isinstance(value, Real) else repr(value)).split())
    return text if len(text) <= 60 else text[:57] + "..."
