"""The op Embedding: rows of a packed matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.ops.linear_graphs import FORMATS, Packed, embedding_op, random_matrix

VOCABULARY = 75  # not whole tiles


def dequantised(packed: Packed) -> np.ndarray:
    low = packed.low[:, :, None]
    values = packed.scale[:, :, None] * packed.whole.astype(np.float32)
    values = values + low if packed.bits == 4 else values
    return (packed.unit[:, None, None] * values).reshape(len(packed.whole), -1)


@pytest.mark.parametrize("form", FORMATS)
def test_definition(form: int | str) -> None:
    packed = random_matrix(1, form, VOCABULARY, 96)
    tokens = np.random.default_rng(2).permutation(VOCABULARY)
    (found,) = embedding_op(packed).session().run(None, {"tokens": tokens[None]})
    np.testing.assert_array_equal(found[0], dequantised(packed)[tokens])
    (none,) = embedding_op(packed).session().run(None, {"tokens": tokens[None, :0]})
    assert none.shape == (1, 0, 96)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_other_tokens_are_refused(token: int) -> None:
    session = embedding_op(random_matrix(1, 8, VOCABULARY, 96)).session()
    with pytest.raises(Exception, match=f"Embedding: token {token} is not below 75"):
        session.run(None, {"tokens": np.array([[3, token]])})


def test_other_shapes_are_refused() -> None:
    op = replace(embedding_op(random_matrix(1, 8, VOCABULARY, 96)))
    free = replace(op, inputs={**op.inputs, "tokens": ["B", "S"]})
    with pytest.raises(Exception, match=r"tokens has shape \[2, 1\]; it must be \[1, S\]"):
        free.session().run(None, {"tokens": np.array([[3], [4]])})
