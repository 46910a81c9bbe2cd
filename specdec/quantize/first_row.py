"""Float weights for position 0 beside quantised ones for all others.

The graphs never compute position 0: what it leaves behind comes from the float model. A forward
pass with quantised weights has to treat it so too, or it measures what never happens. (In some
models one linear alone makes the huge activations of position 0, and rounding it breaks them.)
"""

from __future__ import annotations

from typing import cast

from specdec.quantize.grid import FloatArray


class _FirstRowApart:
    """Stands for a weight matrix on the right of ``x @ weights``, for x [tokens, inputs]."""

    __array_ufunc__ = None  # numpy is to leave the product to this class

    def __init__(self, first: FloatArray, others: FloatArray) -> None:
        self._first = first
        self._others = others

    def __rmatmul__(self, x: FloatArray) -> FloatArray:
        result: FloatArray = x @ self._others
        result[:1] = x[:1] @ self._first
        return result


def first_row_apart(first: FloatArray, others: FloatArray) -> FloatArray:
    """Weights [inputs, outputs] for a text's first row, and for its others, as one operand.

    The result can be multiplied by from the left and nothing else.
    """
    return cast(FloatArray, _FirstRowApart(first, others))
