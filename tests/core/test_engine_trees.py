"""Rounds with several candidates for a position, on toy models whose graphs take rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import reference
from attached_toy import AttachedToy, TargetToy
from statistic import SMALLEST_P, chi_square_p, draws, markov_p
from toy import Toy, near, plain_text, random_table, run_stream, stream_options

from specdec import _core
from specdec.errors import InvalidInputError

V = 12
TABLE = random_table(21, V)
HEAD = [0, 2, 3, 5, 8, 9, 11]
PROMPT = [1, 2, 3, 1, 2]
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
DRAFTERS = ["near", "random", "trimmed", "one token", "ngram", "short context", "attached"]


class Pair:
    """An engine, and the toys behind it."""

    def __init__(
        self, kind: str, k: int, width: int, *, table: Any = TABLE, **options: Any
    ) -> None:
        options = {"takes_rows": True, **options}
        size = len(table)
        self.draft: Any = None
        if kind == "attached":
            self.target: Toy = TargetToy(table, **options)
            self.draft = AttachedToy(near(table, 1), self.target)
            drafter: Any = _core.AttachedDrafter(self.draft.decoder)
        else:
            self.target = Toy(table, **options)
            if kind == "ngram":
                drafter = _core.NgramDrafter(min_match=1, max_match=3)
            else:
                self.draft = drafter_toy(kind, table, size)
                drafter = _core.ModelDrafter(self.draft.decoder)
        self.engine = _core.Engine(self.target.decoder, drafter)
        self.engine.set_draft_length(k)
        self.engine.set_draft_width(width)


def drafter_toy(kind: str, table: Any, size: int) -> Toy:
    large: dict[str, Any] = {"capacity": 1 << 20}
    if kind == "near":
        return Toy(near(table, 1), **large)
    if kind == "random":
        return Toy(random_table(77, size), **large)
    if kind == "trimmed":
        head = [token for token in HEAD if token < size]
        return Toy(near(table, 2)[:, :, head], head_ids=head, **large)
    if kind == "one token":
        return Toy(np.zeros((size, size, 1), np.float32), head_ids=[7])
    assert kind == "short context"
    return Toy(near(table, 3), capacity=40)


# --- the text does not depend on how it was drafted ---


@pytest.mark.parametrize("kind", DRAFTERS)
def test_greedy_text_is_that_of_the_target_alone(kind: str) -> None:
    for extra in ({}, PENALTIES, {"logit_bias": [(4, 2.0), (1, float("-inf"))]}):
        options = stream_options(temperature=0, max_tokens=100, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k, width in ((1, 2), (1, 8), (2, 3), (4, 2), (4, 4), (8, 8), (_core.AUTO, _core.AUTO)):
            pair = Pair(kind, k, width)
            assert run_stream(pair.engine, PROMPT, options) == plain, (k, width, extra)
            assert pair.target.decoder.length == len(pair.engine.tokens) - 1


@pytest.mark.parametrize("kind", DRAFTERS)
def test_coupled_text_is_that_of_the_target_alone(kind: str) -> None:
    for seed, extra in enumerate(({}, PENALTIES, {"top_p": 0.8, "top_k": 7, "min_p": 0.1})):
        options = stream_options(rule="coupled", seed=seed, max_tokens=100, **extra)
        plain = plain_text(TABLE, PROMPT, options)
        for k, width in ((1, 2), (2, 8), (4, 3), (6, 5), (_core.AUTO, 3), (3, _core.AUTO)):
            pair = Pair(kind, k, width)
            assert run_stream(pair.engine, PROMPT, options) == plain, (k, width, extra)


def test_k_and_width_may_change_at_every_round() -> None:
    rng = np.random.default_rng(3)
    options = stream_options(temperature=0, max_tokens=200)
    pair = Pair("near", 1, 1)
    pair.engine.start(PROMPT, options)
    pair.engine.prefill()
    while True:
        pair.engine.set_draft_length(int(rng.integers(1, 9)))
        pair.engine.set_draft_width(int(rng.integers(1, 9)))
        if pair.engine.round().finish != _core.Finish.none:
            break
    assert pair.engine.tokens == PROMPT + plain_text(TABLE, PROMPT, options)


@pytest.mark.parametrize("rule", ["token", "block", "coupled"])
def test_same_seed_same_text(rule: str) -> None:
    texts = [
        run_stream(
            Pair("near", 3, 3).engine, PROMPT, stream_options(rule=rule, seed=s, max_tokens=60)
        )
        for s in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_first_candidate_is_that_of_a_chain() -> None:
    # So what comes of the first round's chain does not change with its siblings.
    for rule in ("token", "coupled", "greedy"):
        temperature = 0 if rule == "greedy" else 1
        for seed in range(20):
            options = stream_options(
                rule="token" if rule == "greedy" else rule,
                seed=seed,
                max_tokens=200,
                temperature=temperature,
            )
            seen = []
            for width in (1, 4):
                pair = Pair("near", 4, width)
                pair.engine.start(PROMPT, options)
                pair.engine.prefill()
                pair.engine.round()
                seen.append(pair.target.tokens[:5].tolist())
            assert seen[0] == seen[1]


# --- sampled text, against the exact chain ---

CHAIN = random_table(1, 8)


def chain_p(tokens: list[int], **sampling: Any) -> float:
    t = np.array(tokens)
    cells = (t[:-2] * 8 + t[1:-1]) * 8 + t[2:]
    counts = np.bincount(cells, minlength=8**3).reshape(64, 8)
    rows = [reference.distribution(row, **sampling) for row in CHAIN.reshape(-1, 8)]
    return markov_p(counts, np.stack(rows))


@pytest.mark.parametrize(
    ("kind", "k", "width", "tokens"),
    [
        ("near", 4, 2, 100_000),
        ("near", 3, 4, 100_000),
        ("random", 2, 8, 60_000),
        ("attached", 4, 2, 60_000),
        ("trimmed", 3, 3, 60_000),
        ("near", _core.AUTO, _core.AUTO, 100_000),
        ("random", _core.AUTO, 3, 40_000),
    ],
)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_text_follows_the_chain(rule: str, kind: str, k: int, width: int, tokens: int) -> None:
    count = draws(tokens)
    pair = Pair(kind, k, width, table=CHAIN, capacity=count + 64)
    pair.target.poison = False
    options = stream_options(rule=rule, max_tokens=count, seed=3)
    text = run_stream(pair.engine, [0, 1], options)
    assert len(text) == count
    assert chain_p([0, 1, *text]) > SMALLEST_P
    if width > 1:
        totals = pair.engine.totals
        assert totals.checked > 1.5 * sum(totals.drafted_at)


@pytest.mark.parametrize("rule", ["token", "coupled"])
def test_truncated_text_follows_the_truncated_chain(rule: str) -> None:
    # Often fewer tokens are left than there should be candidates.
    sampling: dict[str, Any] = {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "min_p": 0.1}
    count = draws(60_000)
    pair = Pair("near", 3, 4, table=CHAIN, capacity=count + 64)
    pair.target.poison = False
    options = stream_options(rule=rule, max_tokens=count, seed=4, **sampling)
    text = run_stream(pair.engine, [0, 1], options)
    assert chain_p([0, 1, *text], **sampling) > SMALLEST_P
    totals = pair.engine.totals
    assert sum(totals.drafted_at) < totals.checked < 4 * sum(totals.drafted_at)


def test_penalised_text_follows_its_joint_distribution() -> None:
    v, length = 4, 4
    prompt = [3, 1]
    table = random_table(6, v)
    exact = np.zeros((v,) * length)
    for text in itertools.product(range(v), repeat=length):
        mass = 1.0
        for i, token in enumerate(text):
            before = prompt + list(text[:i])
            row = table[before[-2], before[-1]]
            mass *= reference.distribution(row, prompt, text[:i], **PENALTIES)[token]
        exact[text] = mass
    pair = Pair("near", 3, 2, table=table, capacity=16)
    observed = np.zeros(exact.shape, np.int64)
    for seed in range(draws(15_000)):
        options = stream_options(rule="token", max_tokens=length, seed=seed, **PENALTIES)
        observed[tuple(run_stream(pair.engine, prompt, options))] += 1
    assert chi_square_p(observed, exact * observed.sum()) > SMALLEST_P


# --- columns, limits, stops and failures ---


def test_an_accepted_sibling_keeps_its_column_and_hidden_state() -> None:
    pair = Pair("attached", 3, 3)
    options = stream_options(rule="token", temperature=1.5, seed=1, max_tokens=300)
    pair.engine.start(PROMPT, options)
    pair.engine.prefill()
    moved = 0
    finish = _core.Finish.none
    while finish == _core.Finish.none:
        before = pair.target.decoder.length
        finish = pair.engine.round().finish
        committed = pair.engine.tokens[:-1]
        length = pair.target.decoder.length
        assert length == len(committed)
        assert pair.target.keys[:length].tolist() == committed
        assert pair.target.values[:length].tolist() == list(range(1, length + 1))
        for position in range(before, length):
            state = pair.target.decoder.hidden(position)
            assert state is not None
            assert state[:2].tolist() == [committed[position], position]
        chain = pair.target.tokens[: length - before].tolist()
        moved += chain != committed[before:length]
    assert moved > 10


def test_rows_are_moved_in_every_layer_and_head() -> None:
    layers, heads, dim, capacity = 3, 2, 4, 10
    decoder = _core.InPlaceDecoder(
        vocabulary=5, head_ids=[], layers=layers, kv_heads=heads, head_dim=dim,
        capacity=capacity, min_width=1, max_width=6, max_logit_rows=6, hidden=2,
        takes_rows=True, run=lambda width, first: None,
    )  # fmt: skip
    buffers = decoder.buffers()
    rng = np.random.default_rng(1)
    names = [f"{kind}.{layer}" for kind in ("key", "value") for layer in range(layers)]
    for name in names:
        buffers[name][...] = rng.normal(size=buffers[name].shape)
    buffers["hidden"][...] = rng.normal(size=(6, 2))
    decoder.forward([0, 1], 1)
    decoder.commit(2)
    decoder.forward([1, 2, 3, 4], 4, [-1, 0, 0, 0])
    expected = {name: buffers[name].copy() for name in [*names, "hidden"]}
    for name in names:
        expected[name][0, :, 3] = expected[name][0, :, 5]
    expected["hidden"][1] = expected["hidden"][3]
    decoder.move_row(3, 1)
    for name, array in expected.items():
        assert np.array_equal(buffers[name], array), name
    for row, place in ((4, 1), (1, 2), (1, -1)):
        with pytest.raises(InvalidInputError, match="takes the place of one before it"):
            decoder.move_row(row, place)
    for parents in ([-1, 1], [-1, -2], [0, 0]):
        with pytest.raises(InvalidInputError, match="every parent in it is a token before"):
            decoder.forward([0, 1], 1, parents)
    with pytest.raises(InvalidInputError, match="one parent for each"):
        decoder.forward([0, 1], 1, [-1])


def test_a_target_of_chains_refuses_trees() -> None:
    toy = Toy(TABLE)
    engine = _core.Engine(toy.decoder, _core.ModelDrafter(Toy(near(TABLE, 1)).decoder))
    assert not toy.decoder.takes_trees
    assert engine.widest_draft == 1
    with pytest.raises(InvalidInputError, match="draft_width is 2, and this target checks one"):
        engine.set_draft_width(2)
    engine.set_draft_width(_core.AUTO)
    options = stream_options(temperature=0, max_tokens=50)
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)
    toy.decoder.commit(0)
    with pytest.raises(InvalidInputError, match="for decoders that take trees"):
        toy.decoder.forward([1, 2], 1, [-1, -1])
    with pytest.raises(InvalidInputError, match="only in decoders that take trees"):
        toy.decoder.move_row(1, 0)


@pytest.mark.parametrize("width", [0, 9, -2])
def test_widths_out_of_range(width: int) -> None:
    with pytest.raises(InvalidInputError, match=f"draft_width is {width}; it must be 1 to 8"):
        Pair("near", 2, 1).engine.set_draft_width(width)


@pytest.mark.parametrize("kind", ["near", "random", "attached"])
@pytest.mark.parametrize("capacity", [7, 8, 12, 33])
def test_the_context_fills_to_its_last_token(kind: str, capacity: int) -> None:
    plain = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=capacity - 5))
    for k, width in ((1, 8), (3, 4), (8, 8)):
        pair = Pair(kind, k, width, capacity=capacity)
        assert run_stream(pair.engine, PROMPT, stream_options(temperature=0)) == plain
        assert len(pair.engine.tokens) == capacity


def test_siblings_give_way_where_a_step_has_no_room() -> None:
    # All of the chain, and as many siblings as the step takes, at the first positions.
    for most in (6, 9, 16, 20):
        pair = Pair("near", 5, 3, max_width=most, max_logit_rows=most)
        pair.target.record = True
        run_stream(pair.engine, PROMPT, stream_options(temperature=0, max_tokens=40))
        assert max(pair.target.widths) == min(most, 16)
        assert pair.engine.totals.drafted_at[4] > 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 17])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_max_tokens(kind: str, max_tokens: int) -> None:
    for rule in ("token", "block", "coupled"):
        options = stream_options(rule=rule, max_tokens=max_tokens, seed=2)
        assert len(run_stream(Pair(kind, 8, 3).engine, PROMPT, options)) == max_tokens


@pytest.mark.parametrize("kind", ["near", "random", "attached"])
def test_stop_ids_end_the_text_inside_a_path(kind: str) -> None:
    free = plain_text(TABLE, PROMPT, stream_options(temperature=0, max_tokens=120))
    go_on = stream_options(temperature=0, max_tokens=30)
    for stop in sorted(set(free)):
        pair = Pair(kind, 3, 4)
        options = stream_options(temperature=0, max_tokens=120, stop_ids=[stop])
        text = run_stream(pair.engine, PROMPT, options)
        assert text == free[: free.index(stop) + 1]
        length = pair.target.decoder.length
        assert length == len(pair.engine.tokens) - 1
        assert pair.target.keys[:length].tolist() == pair.engine.tokens[:-1]
        again = run_stream(pair.engine, PROMPT + text, go_on)
        assert again == plain_text(TABLE, PROMPT + text, go_on)


@pytest.mark.parametrize("kind", ["near", "attached"])
@pytest.mark.parametrize("failing", ["target", "drafter"])
def test_a_failing_run_leaves_the_committed_prefix(failing: str, kind: str) -> None:
    options = stream_options(rule="coupled", temperature=1, seed=1, max_tokens=40)
    plain = plain_text(TABLE, PROMPT, options)
    for run in range(2, 14):
        pair = Pair(kind, 3, 3)
        toy = pair.target if failing == "target" else pair.draft

        def fail(number: int, run: int = run) -> None:
            if number == run:
                raise RuntimeError("the model broke")

        toy.before_run = fail
        with pytest.raises(RuntimeError, match="the model broke"):
            run_stream(pair.engine, PROMPT, options)
        committed = pair.engine.tokens
        length = pair.target.decoder.length
        assert length <= len(committed) - 1
        assert pair.target.keys[:length].tolist() == committed[:length]
        assert committed == PROMPT + plain[: len(committed) - len(PROMPT)]
        toy.before_run = None
        assert run_stream(pair.engine, PROMPT, options) == plain


def test_totals_count_positions_and_candidates() -> None:
    pair = Pair("near", 3, 4)
    run_stream(pair.engine, PROMPT, stream_options(temperature=0, max_tokens=60))
    totals = pair.engine.totals
    assert totals.checked == 4 * sum(totals.drafted_at)
    assert totals.tokens == totals.rounds + sum(totals.accepted_at) == 60
