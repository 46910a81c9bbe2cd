"""Keys in tiles: a column is moved within its tile, and from one tile to another."""

from __future__ import annotations

import numpy as np
import pytest
from kv_columns import read_columns, write_columns

from specdec import _core


@pytest.mark.parametrize(("committed", "row", "place"), [(3, 2, 0), (30, 4, 1), (31, 1, 0)])
def test_a_column_is_moved(committed: int, row: int, place: int) -> None:
    decoder = _core.InPlaceDecoder(
        vocabulary=5, head_ids=[], layers=2, kv_heads=2, head_dim=8, capacity=50, min_width=1,
        max_width=40, max_logit_rows=8, takes_rows=True, half_kv=True,
        run=lambda width, first: None,
    )  # fmt: skip
    for name, buffer in decoder.buffers().items():
        if "." in name:
            assert (buffer.dtype, buffer.shape) == (np.float16, (1, 2, 64, 8))
    rng = np.random.default_rng(1)
    columns = read_columns(decoder)
    assert len(columns) == 4
    write_columns(decoder, {name: rng.normal(size=old.shape) for name, old in columns.items()})
    decoder.forward([1] * committed, 1)
    decoder.commit(committed)
    decoder.forward([1] * 6, 6, [-1, *range(5)])
    expected = read_columns(decoder)
    for values in expected.values():
        values[:, :, committed + place] = values[:, :, committed + row]
    decoder.move_row(row, place)
    for name, values in read_columns(decoder).items():
        np.testing.assert_array_equal(values, expected[name])


def test_the_whole_capacity_may_be_used_and_no_more() -> None:
    decoder = _core.InPlaceDecoder(
        vocabulary=5, head_ids=[], layers=1, kv_heads=1, head_dim=8, capacity=33, min_width=1,
        max_width=40, max_logit_rows=8, takes_rows=True, half_kv=True,
        run=lambda width, first: None,
    )  # fmt: skip
    decoder.forward([1] * 33, 1)
    decoder.commit(33)
    with pytest.raises(Exception, match="does not fit into a context of 33"):
        decoder.forward([1], 1)
