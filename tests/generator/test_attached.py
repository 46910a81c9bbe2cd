"""Drafters that read their target's hidden states and share its K/V, through the face."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from specdec import (
    Generator,
    InvalidInputError,
    Model,
    ModelFolderError,
    ModelRunError,
    SamplingParams,
    VocabularyMismatchError,
)
from specdec._core import Decoder, InPlaceDecoder
from specdec.convert import convert
from specdec.convert.htp.folder import convert_htp
from tests.cli.conftest import cli
from tests.convert.graph_pair import GraphPair
from tests.core.kv_columns import read_columns
from tests.tiny_gguf import DEFAULT_VOCAB, random_llama, write_tiny_drafter, write_tiny_gguf

__all__ = ["cli"]

PROMPT = "the quick brown fox"
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=11, max_tokens=48, ignore_eos=True)
LENGTHS = (1, 2, 4, 7, 16, "auto")


@pytest.fixture(scope="module")
def stranger(tiny_attached: Path) -> Model:
    """Random layers, a bridge and a trimmed head: nearly all of its drafts are rejected."""
    return Model.load(tiny_attached)


@pytest.fixture(scope="module")
def twin(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The target's own layers: where its K/V and positions are right, it drafts the target's text.

    It needs no bridge, so hidden states do not enter.
    """
    weights = random_llama(2, 64, 4, 2, 128, DEFAULT_VOCAB, True, 0)
    del weights["token_embd.weight"]
    folder = tmp_path_factory.mktemp("twin")
    checkpoint = write_tiny_drafter(
        folder / "twin.gguf", target_layers=[0, 1], tensors=weights, quant="Q4_1"
    )
    return Model.load(convert(checkpoint, folder / "twin", target_source=tiny_gguf))


@pytest.fixture(params=["stranger", "twin"])
def drafter(request: pytest.FixtureRequest) -> Model:
    model: Model = request.getfixturevalue(request.param)
    return model


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[Decoder]:
    """Every decoder with a cache that is made in the test."""
    made: list[Decoder] = []
    original = Model.new_decoder

    def new_decoder(self: Model, **options: Any) -> Decoder:
        made.append(original(self, **options))
        return made[-1]

    monkeypatch.setattr(Model, "new_decoder", new_decoder)
    return made


def caches(decoder: Decoder) -> dict[str, np.ndarray[Any, Any]]:
    """The committed columns of every layer."""
    columns = read_columns(decoder)
    return {name: values[:, :, : decoder.length] for name, values in columns.items()}


# The text, and what is left behind


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_text_is_the_targets(target: Model, drafter: Model, params: SamplingParams) -> None:
    plain = Generator(target, acceptance="coupled").generate(PROMPT, params).tokens
    for k in LENGTHS:
        generator = Generator(target, drafter, draft_length=k, acceptance="coupled")
        assert generator.generate(PROMPT, params).tokens == plain, k


def test_the_targets_own_layers_draft_its_text(target: Model, twin: Model) -> None:
    for params in (GREEDY, SAMPLED):
        for acceptance in ("block", "token", "coupled"):
            generator = Generator(target, twin, draft_length=4, acceptance=acceptance)
            stats = generator.generate(PROMPT, params).stats
            assert stats.accepted > 0.9 * stats.drafted > 20


def test_its_steps_read_the_hidden_state_before(
    target: Model, stranger: Model, tiny_target: Path, tiny_attached: Path
) -> None:
    prompt, drafts = [5, 6, 7, 8, 9], [10, 11, 12]
    decoder = target.new_decoder(capacity=64, max_logit_rows=8)
    assert isinstance(decoder, InPlaceDecoder)
    decoder.forward(prompt[:3], 1)
    decoder.commit(3)
    decoder.forward(prompt[3:], 2)
    decoder.commit(1)  # as if the last row had been rejected
    attached = stranger.new_attached_decoder(decoder, context=64)
    assert attached.follow(4)
    pair = GraphPair(tiny_target, tiny_attached)
    _, hidden = pair.target(prompt[:4], 0)
    features = hidden[3:]
    np.testing.assert_array_equal(decoder.hidden(3), features[0])
    for position, token in enumerate(drafts, 4):
        expected, features = pair.draft([token], position, features)
        np.testing.assert_array_equal(attached.forward([token], 1), expected)
        attached.commit(1)


@pytest.mark.parametrize("k", LENGTHS)
def test_committed_columns_are_those_of_plain_decoding(
    target: Model, drafter: Model, decoders: list[Decoder], k: int | str
) -> None:
    plain, drafted = Generator(target), Generator(target, drafter, draft_length=k)
    for prompt in (PROMPT, f"{PROMPT} jumps", "other", PROMPT):
        expected = plain.generate(prompt, GREEDY).tokens
        assert drafted.generate(prompt, GREEDY).tokens == expected
        assert len(decoders) == 2  # the drafter has no cache of its own
        ours, theirs = (caches(decoder) for decoder in decoders)
        assert ours.keys() == theirs.keys()
        for name, columns in ours.items():
            assert columns.shape[2] > 48
            np.testing.assert_array_equal(columns, theirs[name], err_msg=name)


def test_a_conversation_that_is_left_and_taken_up(
    target: Model, drafter: Model, decoders: list[Decoder]
) -> None:
    generator = Generator(target, drafter, draft_length=3)
    messages = [{"role": "user", "content": "hi"}]
    for turn in range(3):
        for params in (GREEDY, GREEDY.override({"max_tokens": 5})):
            chunks = generator.stream(messages, params)  # closed after one chunk, or two
            for _ in range(1 + turn % 2):
                next(chunks)
            chunks.close()
            assert decoders[0].length == len(generator._engine.tokens) - 1
            result = generator.generate(messages, params)
            plain = Generator(target).generate(messages, params)
            assert result.tokens == plain.tokens
            generator.draft_length = 1 + turn
        messages += [
            {"role": "assistant", "content": result.text},
            {"role": "user", "content": "go on"},
        ]


def test_cancel_and_changes_from_another_thread(target: Model, twin: Model) -> None:
    generator = Generator(target, twin, draft_length=2, max_context=200)
    plain = Generator(target).generate(PROMPT, GREEDY, max_tokens=None).tokens
    for stop_after in (1, 3, 7):
        text: list[int] = []
        for count, chunk in enumerate(generator.stream(PROMPT, GREEDY, max_tokens=None), 1):
            text += chunk.tokens
            generator.draft_length = 1 + 3 * count % 8
            if count == stop_after:
                thread = threading.Thread(target=generator.cancel)
                thread.start()
                thread.join()
        assert chunk.finish_reason == "cancelled"
        assert tuple(text) == plain[: len(text)]
    assert generator.generate(PROMPT, GREEDY).tokens == plain[:48]


def test_the_context_fills_to_its_last_token(target: Model, twin: Model) -> None:
    for k in (1, 5, 32):
        for context in (20, 21, 33):
            texts = [
                Generator(target, draft, draft_length=k, max_context=context).generate(
                    "hi", GREEDY, max_tokens=None, raw=True
                )
                for draft in (None, twin)
            ]
            assert texts[0].tokens == texts[1].tokens
            assert texts[0].finish_reason == "length"


def test_a_drafter_of_a_shorter_context(target: Model, tiny_gguf: Path, tmp_path: Path) -> None:
    checkpoint = write_tiny_drafter(tmp_path / "short.gguf", target_layers=[1], context=40)
    short = Model.load(convert(checkpoint, tmp_path / "short", target_source=tiny_gguf))
    generator = Generator(target, short, draft_length=3)
    long = GREEDY.override({"max_tokens": 100})
    assert generator.generate(PROMPT, long).tokens == (
        Generator(target).generate(PROMPT, long).tokens
    )
    assert 0 < generator.stats.drafted < 120


def test_two_generators_of_one_pair(target: Model, twin: Model) -> None:
    prompts = (PROMPT, "what the other dog wanted")
    expected = [Generator(target).generate(prompt, GREEDY).tokens for prompt in prompts]
    generators = [Generator(target, twin, draft_length=3) for _ in prompts]
    # Round by round in turns, and each in a thread of its own.
    streams = [g.stream(prompt, GREEDY) for g, prompt in zip(generators, prompts, strict=True)]
    texts: list[list[int]] = [[], []]
    for chunks in zip(*streams, strict=False):
        for text, chunk in zip(texts, chunks, strict=True):
            text += chunk.tokens
    for text, rest, whole in zip(texts, streams, expected, strict=True):
        assert tuple(text + [token for chunk in rest for token in chunk.tokens]) == whole
    found: dict[int, tuple[int, ...]] = {}

    def write(index: int) -> None:
        found[index] = generators[index].generate(prompts[index], GREEDY).tokens

    threads = [threading.Thread(target=write, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == expected


class FailingSession:
    """A session whose steps fail from a certain one on."""

    def __init__(self, session: Any, step: int) -> None:
        self.session, self.steps_left = session, step

    def io_binding(self) -> Any:
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise RuntimeError("the device is gone")
        self.session.run_with_iobinding(binding)


@pytest.fixture
def fail_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Model, int], None]:
    def fail(model: Model, step: int) -> None:
        session = model._session
        monkeypatch.setattr(session, "_session", FailingSession(session._session, step))

    return fail


@pytest.mark.parametrize("step", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("failing", ["target", "drafter"])
def test_a_model_that_fails_leaves_both_usable(
    target: Model,
    twin: Model,
    decoders: list[Decoder],
    fail_in_step: Callable[[Model, int], None],
    failing: str,
    step: int,
) -> None:
    fail_in_step(target if failing == "target" else twin, step)
    generator = Generator(target, twin, draft_length=3)
    with pytest.raises(ModelRunError, match="the device is gone"):
        generator.generate(PROMPT, GREEDY)
    tokens = generator._engine.tokens
    assert decoders[0].length == (0 if failing == "target" and step == 0 else len(tokens) - 1)
    broken = (target if failing == "target" else twin)._session._session
    broken.steps_left = 10**9
    for prompt in (tokens, generator.encode(PROMPT)):
        expected = Generator(target).generate(prompt, GREEDY).tokens
        assert generator.generate(prompt, GREEDY).tokens == expected


def test_nothing_is_kept_alive(target: Model, twin: Model, decoders: list[Decoder]) -> None:
    generator = Generator(target, twin, draft_length=3)
    generator.generate(PROMPT, GREEDY)
    watched = weakref.ref(generator)
    decoders.clear()
    del generator
    gc.collect()
    assert watched() is None


# Models that do not go together


def test_an_attached_drafter_does_not_write_alone(stranger: Model) -> None:
    with pytest.raises(InvalidInputError, match="is an attached drafter, which cannot write alone"):
        Generator(stranger)


def test_an_attached_drafter_on_the_npu(tiny_attached: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"for the CPU only.* use a standalone drafter"):
        Model.load(tiny_attached, backend="qnn")


def test_a_target_of_fixed_shape(tiny_gguf: Path, stranger: Model, tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    convert_htp(tiny_gguf, folder, layout="fp16", widths=(8,), context=64, best_head=False)
    with pytest.raises(InvalidInputError, match="graphs of fixed shape; use a standalone drafter"):
        Generator(Model.load(folder, backend="cpu"), stranger)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"layers": 1}, "layer 1, and the target has layers 0 to 0"),
        ({"hidden": 128}, "a hidden size of 64, and this one has a hidden size of 128"),
        ({"kv_heads": 4}, "2 key/value heads, and this one has 4"),
        ({"heads": 2}, "heads of 16 values, and this one has heads of 32"),
    ],
    ids=str,
)
def test_a_target_that_it_was_not_made_for(
    stranger: Model, tmp_path: Path, sizes: dict[str, int], named: str
) -> None:
    checkpoint = write_tiny_gguf(tmp_path / "other.gguf", **sizes)
    other = Model.load(convert(checkpoint, tmp_path / "other"))
    with pytest.raises(InvalidInputError, match=f"does not fit .*{named}"):
        Generator(other, stranger)


def test_another_vocabulary(stranger: Model, tmp_path: Path) -> None:
    checkpoint = write_tiny_gguf(tmp_path / "other.gguf", vocab=290)
    other = Model.load(convert(checkpoint, tmp_path / "other"))
    with pytest.raises(VocabularyMismatchError, match="do not share one vocabulary"):
        Generator(other, stranger)


def test_a_target_without_hidden_states(
    tiny_target: Path, stranger: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Model.load(tiny_target)
    monkeypatch.setattr(old._session, "gives_hidden", False)  # as before they were written
    plain = Generator(old).generate(PROMPT, GREEDY).tokens
    assert plain == Generator(old, "ngram").generate(PROMPT, GREEDY).tokens
    with pytest.raises(ModelFolderError, match=r"older version of specdec.*pull or convert it"):
        Generator(old, stranger)


# What is said of it


def test_inspect_says_what_it_shares(cli: Any, tiny_attached: Path, tiny_drafter: Path) -> None:
    shown = " ".join(cli("inspect", tiny_attached).stdout.split())
    assert "attached: reads its target's final hidden state" in shown
    assert "layers 1;" in shown
    assert "of no concern: a step of an attached drafter has one token" in shown
    assert "standalone: has a KV cache of its own" in cli("inspect", tiny_drafter).stdout


def test_inspect_as_json(
    cli: Any, tiny_attached: Path, tiny_attached_gguf: Path, tiny_target: Path
) -> None:
    model = json.loads(cli("inspect", tiny_attached, "--json").stdout)
    assert model["drafter"] == {"kind": "attached", "target_layers": [1]}
    assert model["width_invariant"] is None
    assert json.loads(cli("inspect", tiny_target, "--json").stdout)["drafter"] is None
    tensors = gguf.GGUFReader(tiny_attached_gguf).tensors
    own = sum(int(t.n_elements) for t in tensors if t.name != "specdec.head_ids")
    assert model["parameters"] == own + 300 * 64  # and the target's embedding
