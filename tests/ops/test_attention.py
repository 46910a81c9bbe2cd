"""The op CachedAttention: its definition, and that a row's bits depend on its path alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.ops.attention_graphs import (
    INSTRUCTION_SETS,
    Attention,
    Cache,
    Floats,
    Ints,
    Shape,
    chain,
    has,
    inputs_of,
    path_of,
    reference,
    rows_of,
    same_bits,
    session,
)

SHAPES = {
    "smollm2": Shape(),
    "many heads share one": Shape(heads=40, kv_heads=1, head_dim=16),
    "no heads share": Shape(heads=2, kv_heads=2, head_dim=128),
    "8": Shape(heads=4, kv_heads=2, head_dim=8),
    "24": Shape(heads=2, kv_heads=1, head_dim=24),
    "80": Shape(heads=4, kv_heads=2, head_dim=80),
    "200": Shape(heads=2, kv_heads=1, head_dim=200),
    "256": Shape(heads=2, kv_heads=1, head_dim=256),
}
# Committed lengths beside the borders of halves of tiles (16), tiles (32) and chunks (128).
LENGTHS = (0, 1, 15, 16, 31, 100, 125, 128, 250, 256, 280)


def random_tree(seed: int, length: int, n: int, sequence: int = 0) -> Ints:
    """A tree of n rows, in columns behind the committed ones in any order, with gaps."""
    rng = np.random.default_rng(seed)
    parents = [int(rng.integers(-1, i)) for i in range(n)]
    columns = length + rng.permutation(n + 3)[:n]
    return rows_of(sequence, length, columns.tolist(), parents)


@pytest.fixture(params=["auto", "plain", *INSTRUCTION_SETS])
def isa(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name in INSTRUCTION_SETS and not has(name):
        pytest.skip(f"this CPU has no {name}")
    return name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_definition(shape: Shape, isa: str) -> None:
    attention = Attention(shape, threads=2, isa=isa)
    for seed, length in enumerate(LENGTHS):
        for rows in (chain(length, 1), chain(length, 7), random_tree(seed, length, 9)):
            cache = Cache(shape).fill(seed, [length])
            qkv = inputs_of(shape, seed, rows.shape[1])
            before = cache.copy()
            found = attention.step(qkv, rows, cache)
            expected, after = reference(shape, qkv, rows, before, cache)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
            # Also that no other column was written: those of nobody are NaN.
            np.testing.assert_allclose(cache.key, after.key, rtol=2**-10, atol=2**-24)
            np.testing.assert_array_equal(cache.value, after.value)


def test_scores_of_all_sizes() -> None:
    """One key outweighs all others by far; and all keys are the same."""
    shape = Shape(heads=1, kv_heads=1, head_dim=16, capacity=416, positions=416)
    attention = Attention(shape)
    for strength in (0.0, 1e-3, 30.0, 1e4):
        cache = Cache(shape).fill(3, [390])
        cache.key = cache.key * np.float16(strength)
        qkv = inputs_of(shape, 4, 1)
        before = cache.copy()
        found = attention.step(qkv, chain(390, 1), cache)
        expected, _ = reference(shape, qkv, chain(390, 1), before, cache)
        # Near ties among large scores depend on their rounding.
        tolerance = 1e-6 * max(1.0, strength)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def decoded_alone(
    attention: Attention, qkv: Floats, length: int, cache: Cache
) -> tuple[Floats, Cache]:
    """The rows of a chain, one step each."""
    cache = cache.copy()
    steps = [
        attention.step(qkv[i : i + 1], chain(length + i, 1), cache)[0] for i in range(len(qkv))
    ]
    return np.array(steps), cache


@pytest.mark.parametrize("name", ["smollm2", "many heads share one", "24", "200"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_chain_has_the_bits_of_decoding_one_by_one(name: str, threads: int) -> None:
    shape = SHAPES[name]
    alone, together = Attention(shape), Attention(shape, threads=threads)
    for length in LENGTHS:
        qkv = inputs_of(shape, length, 16)
        start = Cache(shape).fill(length, [length])
        expected, after = decoded_alone(alone, qkv, length, start)
        for width in range(1, 17):
            cache = start.copy()
            found = together.step(qkv[:width], chain(length, width), cache)
            assert same_bits(found, expected[:width])
        assert same_bits(cache.key, after.key)
        assert same_bits(cache.value, after.value)


def test_a_prefill_has_the_bits_of_decoding_one_by_one() -> None:
    shape = Shape(capacity=352, positions=352)
    qkv = inputs_of(shape, 1, 330)
    expected, _ = decoded_alone(Attention(shape), qkv, 0, Cache(shape))
    attention = Attention(shape, threads=2)
    for width in (330, 100, 64, 40, 7):
        cache = Cache(shape)
        found = [
            attention.step(qkv[at : at + width], chain(at, len(qkv[at : at + width])), cache)
            for at in range(0, 330, width)
        ]
        assert same_bits(np.concatenate(found), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tree_has_the_bits_of_its_paths(isa: str, threads: int) -> None:
    for name in ("smollm2", "80"):
        shape = SHAPES[name]
        attention, alone = Attention(shape, threads=threads, isa=isa), Attention(shape, isa=isa)
        for seed, length in enumerate(LENGTHS):
            rows = random_tree(seed, length, 4 + 3 * seed)
            qkv = inputs_of(shape, seed, rows.shape[1])
            start = Cache(shape).fill(seed, [length])
            tree = start.copy()
            found = attention.step(qkv, rows, tree)
            for row in range(0, rows.shape[1], 3):
                path = path_of(rows, row)
                chained, cache = decoded_alone(alone, qkv[path], length, start)
                assert same_bits(found[row], chained[-1])
                # K/V too: a path may be moved to where a chain would have been.
                assert same_bits(
                    tree.key[:, :, rows[2, path]], cache.key[:, :, length:][:, :, : len(path)]
                )


def test_a_deep_tree_crosses_chunks() -> None:
    """Two long branches by turns: nearly all of what a row sees is listed column by column."""
    shape = Shape(capacity=704, positions=704)
    attention, alone = Attention(shape, threads=2), Attention(shape)
    rows = rows_of(0, 5, range(5, 605), [-1, -1, *range(598)])
    qkv = inputs_of(shape, 8, 600)
    start = Cache(shape).fill(8, [5])
    found = attention.step(qkv, rows, start.copy())
    for branch in (0, 1):
        chained, _ = decoded_alone(alone, qkv[branch::2], 5, start)
        assert same_bits(found[branch::2], chained)


def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(isa: str) -> None:
    for shape in SHAPES.values():
        for seed, length in enumerate(LENGTHS):
            rows = random_tree(seed, length, 1 + 2 * seed)
            qkv = inputs_of(shape, seed, rows.shape[1])
            caches = [Cache(shape).fill(seed, [length]) for _ in range(3)]
            expected = Attention(shape, isa="plain").step(qkv, rows, caches[0])
            for threads in (1, 2):
                found = Attention(shape, threads=threads, isa=isa).step(qkv, rows, caches[threads])
                assert same_bits(found, expected)
                assert same_bits(caches[threads].key, caches[0].key)


@pytest.mark.parametrize("threads", [1, 2])
def test_sequences_of_one_step_have_the_bits_of_each_alone(threads: int) -> None:
    shape = Shape(sequences=3)
    attention = Attention(shape, threads=threads)
    lengths = [130, 0, 257]
    for mixed_up in (False, True):
        parts = [random_tree(s, lengths[s], n, s) for s, n in enumerate((5, 9, 2))]
        whole = np.concatenate(parts, axis=1)
        first = np.cumsum([0, *(part.shape[1] for part in parts)])
        for s, part in enumerate(parts):
            whole[3, first[s] : first[s + 1]] += np.where(part[3] >= 0, first[s], 0)
        if mixed_up:  # rows of all sequences by turns, children behind their parents
            place = np.concatenate(
                [np.arange(part.shape[1]) * 3 + s for s, part in enumerate(parts)]
            )
            order = np.argsort(place)
            now_at = np.argsort(order)
            whole = whole[:, order]
            whole[3] = np.where(whole[3] >= 0, now_at[whole[3]], -1)
        else:
            order = np.arange(whole.shape[1])
        qkv = inputs_of(shape, 5, whole.shape[1])
        start = Cache(shape).fill(6, lengths)
        together = start.copy()
        found = np.empty((len(qkv), shape.heads * shape.head_dim), np.float32)
        found[order] = attention.step(qkv[order], whole, together)
        for s, part in enumerate(parts):
            cache = start.copy()
            alone = attention.step(qkv[first[s] : first[s + 1]], part, cache)
            assert same_bits(found[first[s] : first[s + 1]], alone)
            assert same_bits(together.key[s], cache.key[s])


def test_present_may_be_other_memory() -> None:
    shape = Shape(sequences=2)
    qkv = inputs_of(shape, 1, 3)
    in_place, copied = (Cache(shape).fill(1, [9, 9]) for _ in range(2))
    expected = Attention(shape).step(qkv, chain(9, 3, 1), in_place)
    past = copied.tiles
    columns = copied.key
    found = Attention(shape, in_place=False).step(qkv, chain(9, 3, 1), copied)
    assert same_bits(found, expected)
    assert same_bits(copied.key, in_place.key)
    assert same_bits(copied.value, in_place.value)
    assert copied.tiles is not past
    assert np.isnan(columns[1, :, 9:]).all()


def test_no_row_sees_what_it_should_not() -> None:
    """Values of all columns but a row's own path are made huge: nothing of them is in the row."""
    shape = Shape(head_dim=16)
    attention = Attention(shape, threads=2)
    rows = rows_of(0, 40, [40, 41, 42, 43, 44], [-1, 0, 1, 1, 0])
    qkv = inputs_of(shape, 2, 5)
    qkv[3, -3 * 16 :] = 1e30  # the value of one leaf; it is held as the greatest half
    found = attention.step(qkv, rows, Cache(shape).fill(2, [40]))
    large = np.abs(found).max(axis=1) > 50
    assert large.tolist() == [False, False, False, True, False]


def test_what_is_no_number_is_not_hidden(isa: str) -> None:
    shape = Shape(head_dim=16)
    qkv = inputs_of(shape, 2, 3)
    qkv[1, 5] = np.nan  # in the query of row 1's first head
    found = Attention(shape, isa=isa).step(qkv, chain(200, 3), Cache(shape).fill(2, [200]))
    assert np.isnan(found[1, :16]).all()
    found[1, :16] = 0
    assert np.isfinite(found).all()


def test_sessions_in_several_threads() -> None:
    shape = Shape()
    attention = Attention(shape, threads=2)
    qkv = inputs_of(shape, 1, 8)
    start = Cache(shape).fill(1, [290])
    expected = attention.step(qkv, chain(290, 8), start.copy())

    def again(_: int) -> bool:
        return same_bits(attention.step(qkv, chain(290, 8), start.copy()), expected)

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(again, range(60)))


def test_a_step_without_rows() -> None:
    shape = Shape()
    found = Attention(shape).step(inputs_of(shape, 1, 0), chain(3, 0), Cache(shape))
    assert found.shape == (0, 9 * 64)


@pytest.mark.parametrize(
    ("sequences", "lengths", "columns", "parents", "message"),
    [
        ([0, 0], [4, 4], [4, 320], [-1, 0], "row 1 writes column 320.*capacity of 320"),
        ([0, 0], [4, 4], [4, 3], [-1, 0], "row 1 writes column 3.*the 4 committed"),
        ([0, 0], [4, 4], [4, -1], [-1, 0], "row 1 writes column -1"),
        ([0, 0], [-1, -1], [4, 5], [-1, 0], "row 0 .*-1 committed"),
        ([0, 0], [4, 4], [4, 4], [-1, -1], "row 1 writes column 4, as row 0 does"),
        ([0, 0, 0], [4, 4, 4], [6, 5, 6], [-1, -1, -1], "row 2 writes column 6, as row 0 does"),
        ([0, 0], [4, 4], [4, 5], [-1, 1], "row 1 has the parent 1"),
        ([0, 0], [4, 4], [4, 5], [-1, 7], "row 1 has the parent 7"),
        ([0, 0], [4, 4], [4, 5], [-2, 0], "row 0 has the parent -2"),
        ([0, 1], [4, 4], [4, 5], [-1, 0], "row 1 has the parent 0, whose sequence"),
        ([0, 0], [4, 5], [4, 5], [-1, 0], "row 1 has the parent 0.*committed length"),
        ([0, 2], [4, 4], [4, 5], [-1, -1], "row 1 belongs to sequence 2, the cache holds 2"),
        ([-1, 0], [4, 4], [4, 5], [-1, -1], "row 0 belongs to sequence -1"),
        ([0, 0], [310, 310], [310, 311], [-1, 0], "row 1 is at position 311.*end at 311"),
    ],
)
def test_bad_rows(
    sequences: list[int], lengths: list[int], columns: list[int], parents: list[int], message: str
) -> None:
    shape = Shape(sequences=2, positions=311)
    rows = np.array([sequences, lengths, columns, parents], np.int32)
    cache = Cache(shape).fill(1, [311, 311])
    before = cache.copy()
    with pytest.raises(Exception, match=f"CachedAttention: rows: {message}"):
        Attention(shape).step(inputs_of(shape, 1, len(columns)), rows, cache)
    assert same_bits(cache.key, before.key)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qkv": [1, 2, 100]}, r"qkv is \[1, 2, 100\], not \[1, 2, 960\]"),
        ({"qkv": [2, 960]}, r"qkv is \[2, 960\], not \[1, rows, features\]"),
        ({"past_key": [1, 4, 32, 64]}, r"past_key is \[1, 4, 32, 64\], not \[sequences, 3 K/V"),
        ({"past_value": [1, 3, 31, 64]}, r"past_value is \[1, 3, 31, 64\], not \[1, 3, 32, 64\]"),
        ({"past_key": [1, 3, 32, 60]}, "head_dim is 60; it must be a multiple of 8, at most 256"),
        ({"past_key": [1, 3, 32, 264]}, "head_dim is 264"),
        (
            {"past_key": [1, 3, 40, 64]},
            "the cache has room for 40 columns; it must be a multiple of 32",
        ),
        ({"rows": [4, 3]}, r"rows is \[4, 3\], not \[4, 2\]"),
        ({"cosine": [32, 64]}, r"cosine is \[32, 64\], not \[32, 32\]"),
        ({"cosine": [32]}, r"cosine is \[32\], not \[positions, head_dim / 2\]"),
        ({"sine": [31, 32]}, r"sine is \[31, 32\], not \[32, 32\]"),
    ],
)
def test_shapes_that_do_not_fit(changed: dict[str, list[int]], message: str) -> None:
    shapes = {
        "qkv": [1, 2, 960],
        "past_key": [1, 3, 32, 64],
        "past_value": [1, 3, 32, 64],
        "rows": [4, 2],
        "cosine": [32, 32],
        "sine": [32, 32],
        **changed,
    }
    types = {"rows": np.int32, "past_key": np.float16, "past_value": np.float16}
    fed = {name: np.zeros(size, types.get(name, np.float32)) for name, size in shapes.items()}
    with pytest.raises(Exception, match=f"CachedAttention: {message}"):
        session(Shape()).run(None, fed)


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 2), (0, 1), (3, 0), (-3, -1), (1 << 40, 1)])
def test_heads_that_do_not_fit(heads: int, kv_heads: int) -> None:
    with pytest.raises(Exception, match=f"CachedAttention: heads is {heads} and kv_heads"):
        session(Shape(heads=heads, kv_heads=kv_heads))
