"""The cache of fixed shape: after any history the past is that of the committed tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
from fixed_toy import FixedToy
from toy import random_table

from specdec.errors import InvalidInputError

V = 12
TABLE = random_table(4, V)
WIDTHS = (2, 5, 16)
PAST = 80


def toy_of(kv_bytes: int, sink: int | None) -> FixedToy:
    return FixedToy(TABLE, widths=WIDTHS, past=PAST, kv_bytes=kv_bytes, sink=sink)


@pytest.mark.parametrize("sink", [None, 6])
@pytest.mark.parametrize("kv_bytes", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_rejected_was_never_drafted(seed: int, kv_bytes: int, sink: int | None) -> None:
    """Byte for byte, with every column beyond the end."""
    rng = np.random.default_rng(seed)
    toy, plain = toy_of(kv_bytes, sink), toy_of(kv_bytes, sink)
    committed: list[int] = []
    while len(committed) < PAST:
        n = min(int(rng.integers(1, 17)), PAST - len(committed))
        drafts = [int(x) for x in rng.integers(0, V, n)]
        if sink is not None and not committed:
            drafts[0] = sink
        toy.decoder.forward(drafts, int(rng.integers(0, n + 1)))
        kept = int(rng.integers(0, n + 1))
        toy.decoder.commit(kept)
        for token in drafts[:kept]:
            plain.decoder.forward([token], 1)
            plain.decoder.commit(1)
        committed += drafts[:kept]
        assert toy.decoder.length == len(committed)
        for ours, theirs in zip(toy.past_columns(), plain.past_columns(), strict=True):
            assert np.array_equal(ours, theirs)
    assert toy.past_tokens(PAST) == committed


@pytest.mark.parametrize("sink", [None, 6])
@pytest.mark.parametrize("kv_bytes", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_any_history(seed: int, kv_bytes: int, sink: int | None) -> None:
    rng = np.random.default_rng(100 + seed)
    toy = toy_of(kv_bytes, sink)
    tokens: list[int] = []
    for _ in range(300):
        if rng.random() < 0.2:
            length = int(rng.integers(0, len(tokens) + 1)) if rng.random() < 0.8 else 0
            toy.decoder.truncate(length)
            tokens = tokens[:length]
        n = int(rng.integers(1, 17))
        if len(tokens) + n > PAST:
            toy.decoder.truncate(0)
            tokens = []
        new = [int(x) for x in rng.integers(0, V, n)]
        if sink is not None and not tokens:
            new[0] = sink
        toy.decoder.forward(new, 0)
        kept = int(rng.integers(0, n + 1))
        toy.decoder.commit(kept)
        tokens += new[:kept]
        assert toy.past_tokens(toy.decoder.length) == tokens


@pytest.mark.parametrize("sink", [None, 6])
def test_a_step_may_be_committed_in_pieces(sink: int | None) -> None:
    toy = toy_of(1, sink)
    tokens = [6, 1, 2, 3, 4, 5, 7]
    toy.decoder.forward(tokens, 1)
    for end in (0, 1, 1, 4, 7):
        toy.decoder.commit(end - toy.decoder.length)
        assert toy.past_tokens(end) == tokens[:end]


def test_columns_that_no_step_gave() -> None:
    toy = toy_of(1, None)
    with pytest.raises(InvalidInputError, match="the 1 columns to commit at position 0"):
        toy.decoder.commit(1)
    toy.decoder.forward([1, 2, 3], 1)
    for n in (4, -1):
        with pytest.raises(InvalidInputError, match=f"the {n} columns to commit"):
            toy.decoder.commit(n)
    toy.decoder.commit(3)
    with pytest.raises(InvalidInputError, match="the 1 columns to commit at position 3"):
        toy.decoder.commit(1)
    toy.decoder.truncate(2)
    toy.decoder.forward([4], 1)
    toy.decoder.truncate(1)
    with pytest.raises(InvalidInputError, match="at position 1"):
        toy.decoder.commit(1)  # its columns belong to position 2


def test_a_step_that_failed_gives_no_columns() -> None:
    toy = toy_of(1, None)
    toy.decoder.forward([1, 2, 3], 1)
    toy.decoder.commit(1)

    def fail(_: int) -> None:
        raise OSError("the model broke")

    toy.before_run = fail
    with pytest.raises(OSError, match="the model broke"):
        toy.decoder.forward([4, 5], 1)
    with pytest.raises(InvalidInputError, match="no step has run"):
        toy.decoder.commit(1)
    toy.before_run = None
    toy.decoder.forward([4, 5], 1)
    toy.decoder.commit(2)
    assert toy.past_tokens(3) == [1, 4, 5]
