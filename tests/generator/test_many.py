"""Several prompts at once: each text is the one that its prompt has alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import specdec.session
from specdec import (
    Chunk,
    ContextFullError,
    Generator,
    GeneratorBusyError,
    InvalidInputError,
    Model,
    ModelRunError,
    SamplingParams,
    Stats,
)
from specdec.convert import convert

SIZES = (1, 2, 3, 8)
GREEDY = SamplingParams(temperature=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, ignore_eos=True)
TEXT = "the quick brown fox jumps over the lazy dog and the cat sat on the mat with a hat "
PROMPTS: list[Any] = [TEXT[start : start + end] for start, end in zip(
    (0, 4, 10, 30, 16, 40, 0, 35, 20, 5), (19, 5, 60, 9, 12, 30, 80, 3, 7, 24), strict=True
)]  # fmt: skip
ENDS = (9, 40, 1, 25, 60, 3, 17, 33, 2, 28)
LENGTHS = (1, 4, 2, 8, 3, 16, 5, 1, 6, 2)


@pytest.fixture(scope="module")
def target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(convert(tiny_gguf, tmp_path_factory.mktemp("f") / "target", layout="fused"))


@pytest.fixture(scope="module", params=["none", "attached", "standalone", "ngram"])
def drafter(
    request: pytest.FixtureRequest,
    tiny_gguf: Path,
    tiny_attached_gguf: Path,
    tiny_drafter_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model | str | None:
    if request.param in ("none", "ngram"):
        return None if request.param == "none" else "ngram"
    source = tiny_attached_gguf if request.param == "attached" else tiny_drafter_gguf
    folder = tmp_path_factory.mktemp("f") / request.param
    return Model.load(convert(source, folder, target_source=tiny_gguf, layout="fused"))


def params_of(params: SamplingParams) -> list[SamplingParams]:
    return [params.override({"max_tokens": end, "seed": end}) for end in ENDS]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_texts_are_those_of_each_prompt_alone(
    target: Model, drafter: Model | str | None, sampling: SamplingParams
) -> None:
    alone = Generator(target, acceptance="coupled")
    params = params_of(sampling)
    expected = [
        alone.generate(prompt, one, raw=True) for prompt, one in zip(PROMPTS, params, strict=True)
    ]
    generator = Generator(target, drafter, acceptance="coupled")
    for size in SIZES:
        for lengths in (LENGTHS, 4, "auto"):
            found = generator.generate_many(
                PROMPTS, params, batch_size=size, draft_length=lengths, raw=True
            )
            for one, other in zip(found, expected, strict=True):
                assert (one.tokens, one.text) == (other.tokens, other.text), (size, lengths)
                assert one.finish_reason == other.finish_reason
                assert one.stats.tokens == other.stats.tokens
            assert drafter is None or lengths == "auto" or generator.stats.drafted > 0
    backwards = generator.generate_many(PROMPTS[::-1], params[::-1], batch_size=3, raw=True)
    assert [one.tokens for one in backwards] == [one.tokens for one in expected[::-1]]


def test_block_texts_are_those_of_the_same_draft_length_alone(
    target: Model, drafter: Model | str | None
) -> None:
    params = params_of(SAMPLED)
    alone = Generator(target, drafter, draft_length=3)
    expected = [
        alone.generate(prompt, one, raw=True).tokens
        for prompt, one in zip(PROMPTS, params, strict=True)
    ]
    generator = Generator(target, drafter, draft_length=3)
    found = generator.generate_many(PROMPTS, params, batch_size=4, raw=True)
    assert [one.tokens for one in found] == expected


def test_stop_strings_and_templates(target: Model, drafter: Model | str | None) -> None:
    alone = Generator(target)
    generator = Generator(target, drafter, draft_length=4)
    texts = [alone.generate(prompt, GREEDY, max_tokens=60).text for prompt in PROMPTS]
    stops = [text[len(text) // 2 : len(text) // 2 + 2] for text in texts]
    assert all(stops)
    params = [GREEDY.override({"stop": stop, "max_tokens": 60}) for stop in stops]
    expected = [alone.generate(prompt, one) for prompt, one in zip(PROMPTS, params, strict=True)]
    assert {one.finish_reason for one in expected} == {"stop"}
    found = generator.generate_many(PROMPTS, params, batch_size=3)
    assert [(one.text, one.tokens, one.finish_reason) for one in found] == [
        (one.text, one.tokens, one.finish_reason) for one in expected
    ]


def test_chunks_come_as_their_texts_grow(target: Model) -> None:
    generator = Generator(target)
    chunks: list[tuple[int, Chunk]] = list(
        generator.stream_many(PROMPTS[:3], GREEDY, max_tokens=20, batch_size=3, raw=True)
    )
    order = [index for index, _ in chunks]
    assert order[:3] != sorted(order)[:3], "one text after the other"
    whole = generator.generate_many(PROMPTS[:3], GREEDY, max_tokens=20, batch_size=2, raw=True)
    for index, result in enumerate(whole):
        mine = [chunk for of, chunk in chunks if of == index]
        assert "".join(mine) == result.text
        assert [chunk.finish_reason for chunk in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == "length"
        assert mine[-1].stats is not None
        assert mine[-1].stats.tokens == 20


def test_prompts_are_taken_when_there_is_a_place(target: Model) -> None:
    taken = 0

    def prompts() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield PROMPTS[taken % len(PROMPTS)]

    generator = Generator(target)
    ended = 0
    for _, chunk in generator.stream_many(prompts(), GREEDY, max_tokens=5, batch_size=2, raw=True):
        ended += chunk.finish_reason is not None
        assert taken <= ended + 2
        if ended == 7:
            break
    assert generator.generate("the", GREEDY, max_tokens=3).stats.tokens == 3  # is free again


def test_a_refused_prompt_does_not_lose_the_others(target: Model) -> None:
    generator = Generator(target, max_context=64)
    prompts = ["the fox", [1] * 64, "the dog", "", [10**6], "a cat"]
    found = generator.generate_many(prompts, GREEDY, max_tokens=8, batch_size=2, raw=True)
    assert [type(one.error) for one in found] == [
        type(None), ContextFullError, type(None), InvalidInputError, InvalidInputError, type(None)
    ]  # fmt: skip
    for prompt, one in zip(prompts, found, strict=True):
        if one.error is None:
            assert one.tokens == generator.generate(prompt, GREEDY, max_tokens=8, raw=True).tokens
        else:
            assert (one.text, one.finish_reason, one.stats) == ("", "error", Stats())


def test_a_model_that_fails_for_one_sequence(
    target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator(target)
    expected = [generator.generate(prompt, GREEDY, max_tokens=12) for prompt in PROMPTS[:3]]
    original = specdec.session._Runner.__call__
    generator.generate_many(PROMPTS[:3], GREEDY, max_tokens=12, batch_size=3)
    assert generator._batch is not None
    rows = generator._batch._decoders[0].buffers()["rows"].reshape(-1)

    def call(self: Any, width: int, first: int) -> None:
        if 1 in rows[:width].tolist() and width < 4:
            raise ModelRunError("sequence 1")
        original(self, width, first)

    with monkeypatch.context() as patch:
        patch.setattr(specdec.session._Runner, "__call__", call)
        found = generator.generate_many(PROMPTS[:3], GREEDY, max_tokens=12, batch_size=3)
    assert [one.tokens for one in found[::2]] == [one.tokens for one in expected[::2]]
    assert isinstance(found[1].error, ModelRunError)
    assert found[1].finish_reason == "error"
    again = generator.generate_many(PROMPTS[:3], GREEDY, max_tokens=12, batch_size=3)
    assert [one.tokens for one in again] == [one.tokens for one in expected]


def test_cancel_from_another_thread(target: Model) -> None:
    generator = Generator(target)
    cancelled = threading.Event()

    def cancel() -> None:
        generator.cancel()
        cancelled.set()

    found: dict[int, list[Chunk]] = {}
    for index, chunk in generator.stream_many(PROMPTS, GREEDY, batch_size=2, raw=True):
        found.setdefault(index, []).append(chunk)
        if sum(map(len, found.values())) == 12 and not cancelled.is_set():
            threading.Thread(target=cancel).start()
            assert cancelled.wait(10)
    assert set(found) == {0, 1}
    assert [chunks[-1].finish_reason for chunks in found.values()] == ["cancelled"] * 2
    results = generator.generate_many(PROMPTS[:2], GREEDY, max_tokens=4, batch_size=2, raw=True)
    assert [one.finish_reason for one in results] == ["length"] * 2


def test_one_stream_at_a_time(target: Model) -> None:
    generator = Generator(target)
    stream = generator.stream_many(PROMPTS, GREEDY, raw=True)
    next(stream)
    with pytest.raises(GeneratorBusyError):
        generator.generate("the")
    with pytest.raises(GeneratorBusyError):
        generator.generate_many(["the"])
    stream.close()  # type: ignore[attr-defined]
    assert generator.generate("the", GREEDY, max_tokens=3).stats.tokens == 3


def test_bad_arguments_are_refused_at_the_call(target: Model) -> None:
    generator = Generator(target)
    for arguments, words in (
        (({"prompts": "the fox"}), "prompts is"),
        (({"batch_size": 0}), "batch_size is 0"),
        (({"batch_size": 65}), "1 to 64"),
        (({"draft_length": 0}), "draft_length is 0"),
        (({"draft_length": [1]}), "draft_length has 1 entries"),
        (({"params": [GREEDY]}), "params has 1 entries"),
        (({"params": ["x", "y"]}), "params is 'x'"),
        (({"temprature": 1}), "temprature"),
        (({"params": [GREEDY] * 2, "prompts": iter(["a", "b"])}), "list"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            generator.stream_many(**{"prompts": ["the", "fox"], **arguments})
    assert generator.generate_many([]) == []


def test_models_of_other_layouts_are_refused(
    target: Model, tiny_gguf: Path, tiny_drafter_gguf: Path, tmp_path: Path
) -> None:
    other = Generator(Model.load(convert(tiny_gguf, tmp_path / "target", layout="nbits8")))
    with pytest.raises(InvalidInputError, match="--layout fused") as caught:
        other.generate_many(["the", "fox"])
    assert "\n" not in str(caught.value)
    draft = convert(tiny_drafter_gguf, tmp_path / "draft", target_source=tiny_gguf, layout="nbits8")
    with pytest.raises(InvalidInputError, match="--layout fused"):
        Generator(target, Model.load(draft)).generate_many(["the", "fox"])


def test_step_shapes_that_are_bound_do_not_grow_for_ever(
    target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Generator(target).generate_many(PROMPTS, GREEDY, max_tokens=9, batch_size=3)
    monkeypatch.setattr(specdec.session, "_MOST_BINDINGS", 2)
    bound: list[int] = []
    original = specdec.session._Runner.__call__

    def call(self: Any, width: int, first: int) -> None:
        original(self, width, first)
        bound.append(len(self._bindings))

    monkeypatch.setattr(specdec.session._Runner, "__call__", call)
    found = Generator(target).generate_many(PROMPTS, GREEDY, max_tokens=9, batch_size=3)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert max(bound) == 2
