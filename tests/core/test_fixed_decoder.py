"""Decoders of fixed shape: what the graph is given, and what is made of what it gives."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from fixed_toy import DIM, HEADS, HIDDEN, LAYERS, FixedToy, embedding, fresh_mask, rotary
from toy import random_table, stream_options

from specdec import _core
from specdec.errors import ContextFullError, InvalidInputError, ModelRunError

V = 12
TABLE = random_table(4, V)
HEAD_IDS = [0, 2, 3, 5, 8, 9, 11]


def text_of(n: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, V, n)]


def expected_rows(toy: FixedToy, tokens: list[int], rows: int) -> Any:
    context = np.array([0, *tokens])
    return toy.table[context[-rows - 1 : -1], context[-rows:]] if rows else toy.table[0, :0]


# --- widths, padding, rows ---


@pytest.mark.parametrize("kv_bytes", [1, 2])
@pytest.mark.parametrize("float16", [False, True])
def test_a_step_takes_the_smallest_width_that_holds_it(kv_bytes: int, float16: bool) -> None:
    toy = FixedToy(TABLE, widths=(2, 8, 32), kv_bytes=kv_bytes, float16=float16)
    tokens: list[int] = []
    for n, width in [(1, 2), (2, 2), (3, 8), (8, 8), (9, 32), (32, 32), (1, 2), (7, 8)]:
        new = text_of(n, seed=n)
        tokens += new
        for rows in {1, n // 2, n}:
            given = toy.decoder.forward(new, rows)
            assert toy.widths.pop() == width
            assert np.array_equal(given, expected_rows(toy, tokens, rows))
        toy.decoder.commit(n)
        assert toy.past_tokens(len(tokens)) == tokens


def test_padding_repeats_the_last_token() -> None:
    toy = FixedToy(TABLE)
    toy.decoder.forward([3, 7, 5], 1)
    assert (toy.buffers["x.8"][0, :, 0] // HIDDEN).tolist() == [3, 7, 5, 5, 5, 5, 5, 5]


def test_no_logits_where_nobody_asks() -> None:
    toy = FixedToy(TABLE, has_best=True)
    toy.decoder.forward([1, 2, 3], 0)
    toy.decoder.forward([1, 2, 3], 1)
    assert toy.heads == [0, 1]


def test_ids_outside_the_vocabulary_are_read_as_0() -> None:
    toy = FixedToy(TABLE)
    toy.decoder.forward([V, -1, 4, 2**31 - 1], 1)
    assert (toy.buffers["x.8"][0, :4, 0] // HIDDEN).tolist() == [0, 0, 4, 0]


def test_a_prompt_runs_in_widest_steps() -> None:
    toy = FixedToy(TABLE, widths=(4, 16), past=128)
    engine = _core.Engine(toy.decoder, None)
    prompt = text_of(16 * 3 + 3 + 1)
    engine.start(prompt, _core.StreamOptions())
    engine.prefill()
    assert toy.widths == [16, 16, 16, 4]
    assert toy.heads == [0, 0, 0, 0]
    assert toy.past_tokens(51) == prompt[:-1]


@pytest.mark.parametrize("widths", [(1,), (2, 8), (2, 8, 32), (64,)])
def test_the_longest_draft_follows_from_the_widest_step(widths: tuple[int, ...]) -> None:
    engine = _core.Engine(FixedToy(TABLE, widths=widths).decoder, None)
    longest = min(widths[-1] - 1, 32)
    assert engine.longest_draft == longest
    if longest:
        engine.set_draft_length(longest)
    with pytest.raises(InvalidInputError, match=f"checks at most {longest} drafts in a step"):
        engine.set_draft_length(longest + 1)


# --- the mask ---


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_that_would_be_built_anew(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths, past = (1, 3, 8, 17), 90
    toy = FixedToy(TABLE, widths=widths, past=past)
    for _ in range(200):
        length = toy.decoder.length
        n = int(rng.integers(1, 18))
        if length + n > past or rng.random() < 0.15:
            toy.decoder.truncate(int(rng.integers(0, length + 1)))
            continue
        toy.decoder.forward(text_of(n, seed=length), 1)  # which checks the whole mask
        width = toy.widths[-1]
        assert np.array_equal(toy.buffers[f"mask.{width}"][0, 0], fresh_mask(width, past, length))
        toy.decoder.commit(int(rng.integers(0, n + 1)))


# --- logits ---


def raw_decoder(head: int, values: Any = None, **changes: Any) -> Any:
    """One layer of nothing; every row's logits are `values`."""

    def run(width: int, _: int) -> None:
        buffers[f"logits.{width}"][...] = values

    options: dict[str, Any] = {
        "vocabulary": head,
        "head_ids": [],
        "layers": 1,
        "kv_heads": 1,
        "head_dim": 2,
        "hidden": 1,
        "past": 4,
        "widths": [2],
        "kv_bytes": 1,
        "embedding": np.zeros((head, 1), np.uint16),
        "rotary": np.zeros((2, 6, 1), np.uint16),
        "mask_allowed": 65_535,
        "mask_blocked": 0,
        "logits_scale": 1.0,
        "logits_zero_point": 0,
        "logits_float16": False,
        "sink": None,
        "has_best": False,
        "run": run,
        **changes,
    }
    decoder = _core.FixedDecoder(**options)
    buffers = decoder.buffers()
    return decoder


@pytest.mark.parametrize("zero_point", [0, 1, 32_768, 40_001, 65_535])
@pytest.mark.parametrize("scale", [1.0, 0.0003717, 3.1e-5])
def test_every_integer_logit(zero_point: int, scale: float) -> None:
    bits = np.arange(65_536, dtype=np.uint16)
    decoder = raw_decoder(65_536, bits, logits_scale=scale, logits_zero_point=zero_point)
    expected = (bits.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
    assert np.array_equal(decoder.forward([1], 1)[0], expected)


def test_every_half_logit() -> None:
    bits = np.arange(65_536, dtype=np.uint16)
    given = raw_decoder(65_536, bits, logits_float16=True).forward([1], 1)[0]
    expected = bits.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(given), ~numbers)
    assert np.array_equal(given.view(np.uint32)[numbers], expected.view(np.uint32)[numbers])


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("head", [1, 2, 7, 8, 9, 15, 17])
def test_heads_of_odd_sizes(head: int, float16: bool) -> None:
    bits = np.random.default_rng(head).integers(0, 30_000, head).astype(np.uint16)
    decoder = raw_decoder(head, bits, logits_float16=float16, logits_scale=0.5)
    expected = bits.view(np.float16) if float16 else bits * np.float32(0.5)
    assert np.array_equal(decoder.forward([0, 0], 2), [expected.astype(np.float32)] * 2)


# --- the sink ---


@pytest.mark.parametrize("kv_bytes", [1, 2])
def test_the_sinks_token_is_never_run(kv_bytes: int) -> None:
    toy = FixedToy(TABLE, sink=6, kv_bytes=kv_bytes)
    assert np.array_equal(toy.decoder.forward([6], 1), toy.table[0, 6][None])
    assert toy.decoder.runs == 0
    toy.decoder.commit(1)
    assert toy.past_tokens(1) == [6]
    for n in (1, 2, 3, 9, 31, 32):
        toy.decoder.truncate(0)
        tokens = [6, *text_of(n - 1)]
        for rows in {0, 1, n - 1, n}:
            given = toy.decoder.forward(tokens, rows)
            if rows:
                assert np.array_equal(given, expected_rows(toy, tokens, rows))
        for kept in range(n + 1):
            toy.decoder.truncate(0)
            toy.decoder.forward(tokens, 1)
            toy.decoder.commit(kept)
            assert toy.past_tokens(kept) == tokens[:kept]


def test_the_sinks_token_takes_no_room_in_a_width() -> None:
    toy = FixedToy(TABLE, sink=6, widths=(2, 4, 8))
    for n, width in [(3, 2), (5, 4), (8, 8)]:
        toy.decoder.forward([6, *text_of(n - 1)], 1)
        assert toy.widths[-1] == width


def test_the_sinks_logits_are_a_copy() -> None:
    toy = FixedToy(TABLE, sink=6)
    toy.decoder.forward([6], 1)[...] = 0  # as a sampler changes them
    assert np.array_equal(toy.decoder.forward([6], 1)[0], toy.table[0, 6])


def test_a_text_without_the_sinks_token() -> None:
    toy = FixedToy(TABLE, sink=6)
    engine = _core.Engine(toy.decoder, None)
    with pytest.raises(InvalidInputError, match="must begin with token 6"):
        toy.decoder.forward([5], 1)
    with pytest.raises(InvalidInputError, match=r"begins with token 5; .* must begin with token 6"):
        engine.start([5, 6], _core.StreamOptions())
    toy.decoder.forward([6, 5], 1)
    toy.decoder.commit(2)
    toy.decoder.forward([5], 1)  # anything may follow


# --- what is refused ---


@pytest.mark.parametrize(("n", "rows"), [(0, 0), (33, 1), (3, 4), (3, -1)])
def test_steps_outside_what_it_was_made_for(n: int, rows: int) -> None:
    with pytest.raises(InvalidInputError, match=f"a step of {n} tokens with {rows} rows"):
        FixedToy(TABLE).decoder.forward([1] * n, rows)


def test_the_context_fills_to_its_last_column() -> None:
    toy = FixedToy(TABLE, widths=(8,), past=11)
    tokens = text_of(11)
    for begin in range(0, 11, 5):
        part = tokens[begin : begin + 5]
        toy.decoder.forward(part, 1)  # the padding needs no room
        toy.decoder.commit(len(part))
    assert toy.past_tokens(11) == tokens
    with pytest.raises(ContextFullError, match=r"1 tokens at position 11 .* context of 11"):
        toy.decoder.forward([1], 1)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"widths": []}, "rotary must have the shape|widths"),
    ({"widths": [0, 2]}, "widths"),
    ({"widths": [2, 2]}, "widths"),
    ({"widths": [3, 2]}, "widths"),
    ({"kv_bytes": 3}, "1 or 2 bytes"),
    ({"kv_bytes": 0}, "1 or 2 bytes"),
    ({"head_dim": 3}, "even head_dim"),
    ({"kv_heads": 0}, "positive sizes"),
    ({"mask_blocked": 65_535}, "two different elements"),
    ({"logits_scale": 0.0}, "positive scale"),
    ({"logits_scale": float("nan")}, "positive scale"),
    ({"logits_zero_point": -1}, "zero point"),
    ({"logits_zero_point": 65_536}, "zero point"),
    ({"embedding": np.zeros((5, 1), np.uint16)}, r"embedding must have the shape \[9, 1\]"),
    ({"rotary": np.zeros((2, 5, 1), np.uint16)}, r"rotary must have the shape \[2, 6, 1\]"),
    ({"head_ids": [3, 1]}, "ascending"),
    ({"past": 1, "rotary": np.zeros((2, 3, 1), np.uint16)}, "a past of 2"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=str)
def test_bad_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        raw_decoder(9, **changes)


@pytest.mark.parametrize("name", ["embedding", "rotary"])
def test_tables_are_taken_as_they_are_or_not_at_all(name: str) -> None:
    table = {"embedding": np.zeros((9, 1), np.uint16), "rotary": np.zeros((2, 6, 1), np.uint16)}
    whole = np.repeat(table[name], 2, axis=0)
    for wrong in (table[name].astype(np.int32), table[name].astype(np.float16), whole[::2]):
        with pytest.raises(TypeError):
            raw_decoder(9, **{name: wrong})


def sink_of(**changes: Any) -> dict[str, Any]:
    column = np.zeros((1, 1, 2), np.uint8)
    return {
        "token": 3,
        "key": column,
        "value": column,
        "logits": np.zeros(9, np.float32),
        **changes,
    }


BAD_SINKS: list[tuple[dict[str, Any], str]] = [
    ({"token": 9}, "first token of its vocabulary"),
    ({"token": -1}, "sink token of the vocabulary"),
    ({"key": np.zeros((1, 2, 1), np.uint8)}, r"key must have the shape \[1, 1, 2\]"),
    ({"value": np.zeros((1, 1, 2), np.uint16)}, '"value", a contiguous array of uint8'),
    ({"logits": np.zeros(9)}, '"logits", a contiguous array of float32'),
    ({"logits": np.zeros(8, np.float32)}, r"logits must have the shape \[9\]"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SINKS, ids=str)
def test_bad_sinks(changes: dict[str, Any], message: str) -> None:
    raw_decoder(9, sink=sink_of())
    with pytest.raises(InvalidInputError, match=message):
        raw_decoder(9, sink=sink_of(**changes))


def test_a_sink_without_its_logits() -> None:
    sink = sink_of()
    del sink["logits"]
    with pytest.raises(InvalidInputError, match='needs "logits"'):
        raw_decoder(9, sink=sink)


@pytest.mark.parametrize("best", [-1, 9, 2**31 - 1])
def test_a_best_token_outside_the_head(best: int) -> None:
    decoder = raw_decoder(9, has_best=True, run=lambda width, head: buffers.__setitem__(..., best))
    buffers = decoder.buffers()["best.2"]
    engine = _core.Engine(decoder, None)
    engine.start([1], stream_options(temperature=0))
    with pytest.raises(ModelRunError, match=f"best token is {best}, outside its head"):
        engine.round()


# --- what is kept alive ---


def test_tables_live_as_long_as_their_decoder() -> None:
    table = embedding(V)
    alive = weakref.ref(table)
    decoder = _core.FixedDecoder(
        vocabulary=V,
        head_ids=[],
        layers=LAYERS,
        kv_heads=HEADS,
        head_dim=DIM,
        hidden=HIDDEN,
        past=8,
        widths=[2],
        kv_bytes=1,
        embedding=table,
        rotary=rotary(10),
        mask_allowed=1,
        mask_blocked=0,
        logits_scale=1.0,
        logits_zero_point=0,
        logits_float16=False,
        sink=None,
        has_best=False,
        run=lambda width, head: None,
    )
    del table
    gc.collect()
    assert alive() is not None
    decoder.forward([V - 1, 0], 1)
    x = decoder.buffers()["x.2"]
    assert np.array_equal(x[0], embedding(V)[[V - 1, 0]])
    del decoder
    gc.collect()
    assert alive() is not None, "a view of a buffer keeps its decoder"
    del x
    gc.collect()
    assert alive() is None


def test_a_past_in_memory_that_is_given() -> None:
    given: list[Any] = []

    def allocate(size: int) -> Any:
        given.append(np.full(size, 7, np.uint8))
        return given[-1]

    decoder = raw_decoder(9, kv_bytes=2, past_memory=allocate, run=lambda width, head: None)
    assert [array.size for array in given] == [4 * 2 * 2, 4 * 2 * 2]  # past, head_dim, bytes
    assert not any(array.any() for array in given)
    for name, array in zip(("past_key.0", "past_value.0"), given, strict=True):
        assert decoder.buffers()[name].ctypes.data == array.ctypes.data
    alive = [weakref.ref(array) for array in given]
    del array, given[:]
    gc.collect()
    assert all(ref() is not None for ref in alive)
    del decoder
    gc.collect()
    assert all(ref() is None for ref in alive)


@pytest.mark.parametrize(
    "memory",
    [
        lambda size: np.zeros(size + 1, np.uint8),
        lambda size: np.zeros(size // 2, np.uint16),
        lambda size: np.frombuffer(bytes(size), np.uint8),
        lambda size: None,
    ],
)
def test_memory_that_does_not_fit(memory: Any) -> None:
    with pytest.raises(InvalidInputError, match="past_memory must give writable uint8 arrays of 8"):
        raw_decoder(9, past_memory=memory)
