"""Streams: chunks and results, prompts, conversations, draft lengths that change."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specdec import Chunk, Generator, Model
from tests.generator.checks import END, GREEDY, PROMPT, SAMPLED, fresh_text

# Chunks and results


def test_stream_and_generate_agree(target: Model, drafter: Model) -> None:
    for draft in (None, "ngram", drafter, target):
        generator = Generator(target, draft, draft_length=3)
        for params in (GREEDY, SAMPLED):
            chunks = list(generator.stream(PROMPT, params))
            result = generator.generate(PROMPT, params)
            assert "".join(chunks) == result.text
            assert sum((chunk.tokens for chunk in chunks), ()) == result.tokens
            assert chunks[-1].finish_reason == result.finish_reason == "length"
            assert result.stats == generator.stats


def test_a_chunk_is_text_with_its_tokens(generator: Generator) -> None:
    chunks = list(generator.stream(PROMPT, GREEDY))
    for chunk in chunks:
        assert isinstance(chunk, str)
        assert isinstance(chunk.tokens, tuple)
        assert all(isinstance(token, int) for token in chunk.tokens)
        assert 0 <= chunk.drafted <= len(chunk.tokens)
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert all(chunks[:-1])  # only the last chunk may be empty
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert "".join(chunks) == generator.target.tokenizer.decode(tokens)
    assert sum(chunk.drafted for chunk in chunks) == generator.stats.accepted > 0


def test_a_chunk_can_be_copied_and_pickled(generator: Generator) -> None:
    chunk = next(generator.stream(PROMPT, GREEDY))
    for other in (copy.copy(chunk), copy.deepcopy(chunk), pickle.loads(pickle.dumps(chunk))):
        assert type(other) is Chunk
        assert other == chunk
        assert (other.tokens, other.drafted, other.finish_reason) == (
            chunk.tokens,
            chunk.drafted,
            None,
        )


def test_text_is_whole_characters(target: Model) -> None:
    # Only the bytes of "é", so that chunks would often end inside a character.
    first, second = target.tokenizer.encode("é")
    bias = {token: -np.inf for token in range(300) if token not in (first, second)}
    generator = Generator(target, target, draft_length=3)
    chunks = list(generator.stream(PROMPT, SAMPLED, logit_bias=bias, temperature=100))
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert set(tokens) == {first, second}
    assert "".join(chunks) == target.tokenizer.decode(tokens)
    assert "é" in "".join(chunks)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 6, 31])
def test_max_tokens_is_exact(target: Model, generator: Generator, max_tokens: int) -> None:
    whole = fresh_text(target, PROMPT, GREEDY).tokens
    for draft_length in (1, 4, 32):
        generator.draft_length = draft_length
        result = generator.generate(PROMPT, GREEDY, max_tokens=max_tokens)
        assert result.tokens == whole[:max_tokens]
        assert result.finish_reason == "length"


def test_an_end_token_stops_and_is_not_part_of_the_text(target: Model) -> None:
    likely = {"temperature": 20, "logit_bias": {END: 60.0}, "max_tokens": 100}
    whole = Generator(target, acceptance="coupled").generate(PROMPT, SAMPLED, **likely).tokens
    assert len(whole) == 100  # ignore_eos goes on
    end = whole.index(END)
    assert end > 0
    for draft_length in (1, 4, 16):
        generator = Generator(target, target, acceptance="coupled", draft_length=draft_length)
        result = generator.generate(PROMPT, SAMPLED, ignore_eos=False, **likely)
        assert result.finish_reason == "stop"
        assert result.tokens == whole[:end]
        assert result.stats.tokens == end + 1


@pytest.mark.parametrize("draft_length", [1, 3, 16])
def test_stop_strings_end_the_text_before_them(target: Model, draft_length: int) -> None:
    generator = Generator(target, target, draft_length=draft_length)
    text = generator.generate(PROMPT, GREEDY).text
    for start, size in ((0, 1), (3, 2), (5, 7), (len(text) // 2, 5)):
        stop = text[start : start + size]
        result = generator.generate(PROMPT, GREEDY, stop=stop)
        assert result.finish_reason == "stop"
        assert result.text == text[: text.index(stop)]
    # One that never comes holds text back, but not for good.
    result = generator.generate(PROMPT, GREEDY, stop=["\0never", text[-3:] + "\0never"])
    assert result.text == text
    assert result.finish_reason == "length"


# Prompts


def test_prompts_of_every_kind(target: Model, generator: Generator) -> None:
    as_text = generator.generate("hi there", GREEDY)
    message = {"role": "user", "content": "hi there"}
    tokens = generator.encode("hi there")
    for prompt in ([message], (message,), tokens, tuple(tokens), np.array(tokens)):
        assert generator.generate(prompt, GREEDY).tokens == as_text.tokens
    raw = generator.generate("hi there", GREEDY, raw=True)
    assert raw.stats.prompt_tokens < as_text.stats.prompt_tokens
    assert raw.tokens == generator.generate(target.tokenizer.encode("hi there"), GREEDY).tokens


def test_a_prompt_of_one_token(target: Model) -> None:
    expected = Generator(target).generate([50], GREEDY).tokens
    for draft_length in (1, 4, 16):
        result = Generator(target, target, draft_length=draft_length).generate([50], GREEDY)
        assert result.tokens == expected
        assert result.stats.prefilled_tokens == 0


# Draft length


def drafted_after(stream: Iterator[Chunk], generator: Generator, rounds: int) -> float:
    """Drafts for each round, over the next rounds."""
    before = generator.stats
    while generator.stats.rounds < before.rounds + rounds:
        next(stream)
    after = generator.stats
    return (after.drafted - before.drafted) / (after.rounds - before.rounds)


def test_draft_length_changes_at_the_next_round(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=4)
    # A text of one token: n-gram lookup always has drafts.
    stream = generator.stream([5] * 10, GREEDY, max_tokens=200, logit_bias={5: 100.0})
    next(stream)
    for length in (4, 1, 7, 2):
        generator.draft_length = length
        assert generator.draft_length == length
        assert drafted_after(stream, generator, 3) == length
    stream.close()
    assert len(generator.stats.acceptance_by_position) == 7
    generator.draft_length = "auto"
    assert generator.draft_length == "auto"


def test_draft_length_can_be_set_from_another_thread(target: Model) -> None:
    generator = Generator(target, "ngram", draft_length=3)
    stream = generator.stream([5] * 10, GREEDY, max_tokens=200, logit_bias={5: 100.0})
    assert drafted_after(stream, generator, 3) == 3
    thread = threading.Thread(target=setattr, args=(generator, "draft_length", np.int64(9)))
    thread.start()
    thread.join()
    assert drafted_after(stream, generator, 3) == 9


# Conversations


def test_the_next_turn_uses_the_prefix(target: Model, generator: Generator) -> None:
    messages = [{"role": "user", "content": "tell me about the fox and the dog and the words"}]
    first = generator.generate(messages, GREEDY, max_tokens=20, ignore_eos=False)
    prompt = first.stats.prompt_tokens
    assert first.stats.prefilled_tokens == prompt - 1
    # The answer is given back as tokens: that of a random model is no text that survives encoding.
    following = [*generator.encode(messages), *first.tokens, END, *generator.encode("and then?")]
    second = generator.generate(following, GREEDY)
    reused = prompt + len(first.tokens)
    assert second.stats.prefilled_tokens <= len(following) - reused + 1
    assert second.tokens == fresh_text(target, following, GREEDY).tokens
    # The same prompt again needs no prefill at all.
    assert generator.generate(following, GREEDY).stats.prefilled_tokens == 0
    # And another conversation begins anew.
    assert generator.generate(messages, GREEDY, max_tokens=20).tokens[:5] == first.tokens[:5]


def test_one_generator_through_many_prompts(target: Model, drafter: Model) -> None:
    rng = np.random.default_rng(0)
    generators = [Generator(target, draft) for draft in (drafter, "ngram", target)]
    prompt: list[int] = [5]
    for _ in range(25):
        keep = int(rng.integers(1, len(prompt) + 1))
        prompt = [*prompt[:keep], *rng.integers(0, 300, int(rng.integers(1, 60))).tolist()][:200]
        expected = Generator(target).generate(prompt, GREEDY, max_tokens=8).tokens
        for generator in generators:
            generator.draft_length = int(rng.integers(1, 17))
            assert generator.generate(prompt, GREEDY, max_tokens=8).tokens == expected


def test_a_drafter_with_a_shorter_context(target: Model, tiny_gguf: Path, tmp_path: Path) -> None:
    from specdec.convert import convert
    from tests.tiny_gguf import write_tiny_drafter

    checkpoint = write_tiny_drafter(tmp_path / "short.gguf", context=64)
    short = Model.load(convert(checkpoint, tmp_path / "short", target_source=tiny_gguf))
    generator = Generator(target, short, draft_length=4)
    for length in (10, 60, 61, 62, 63, 64, 65, 100, 30):
        prompt = [5 + i % 250 for i in range(length)]
        result = generator.generate(prompt, GREEDY)
        assert result.tokens == Generator(target).generate(prompt, GREEDY).tokens
        assert (result.stats.drafted > 0) == (length < 64)
