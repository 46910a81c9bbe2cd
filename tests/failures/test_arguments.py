"""Models, settings and prompts that do not fit give one clear line and leave nothing broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec import (
    ContextFullError,
    Generator,
    InvalidInputError,
    Model,
    ModelRunError,
    Ngram,
    PullError,
    VocabularyMismatchError,
    verify,
)
from specdec.convert import convert
from tests.error_of import error_of
from tests.failures.conftest import OPTIONS
from tests.tiny_gguf import tokenizer_fields, write_tiny_gguf

# Models by name


def test_an_unknown_name(target: Model) -> None:
    for action in (
        lambda: Model.load("smollm3"),
        lambda: Generator("smollm3"),
        lambda: Generator(target, "smollm3"),
    ):
        error_of(PullError, action, "'smollm3'", "smollm2-135m")


@pytest.mark.parametrize("value", [None, 5, True, ["tiny"], Ngram()])
def test_what_is_no_model(value: Any) -> None:
    error_of(InvalidInputError, lambda: Generator(value), "is no model")


@pytest.mark.parametrize("value", [5, True, ["tiny"], Ngram])
def test_what_is_no_drafter(target: Model, value: Any) -> None:
    error_of(InvalidInputError, lambda: Generator(target, value), "is no model")


@pytest.mark.parametrize("threads", [0, -1, 10**9, True, "2", 1.5])
def test_threads(tiny_target: Path, threads: Any) -> None:
    error_of(InvalidInputError, lambda: Model.load(tiny_target, threads=threads), "threads is")


@pytest.mark.parametrize("backend", ["gpu", "", None, 5])
def test_an_unknown_backend(tiny_target: Path, backend: Any) -> None:
    error_of(
        InvalidInputError, lambda: Model.load(tiny_target, backend=backend), "backend is", "'cpu'"
    )


def test_vocabularies_that_differ(target: Model, tmp_path: Path) -> None:
    checkpoint = write_tiny_gguf(tmp_path / "other.gguf", vocab=310)
    other = Model.load(convert(checkpoint, tmp_path / "other"))
    error_of(
        VocabularyMismatchError,
        lambda: Generator(target, other),
        *("tiny (300 tokens)", "other (310)", "draft='ngram'"),
    )
    # The same size is not enough.
    tokens = tokenizer_fields()["tokenizer.ggml.tokens"]
    tokens[200], tokens[201] = tokens[201], tokens[200]
    checkpoint = write_tiny_gguf(
        tmp_path / "swapped.gguf", metadata={"tokenizer.ggml.tokens": tokens}
    )
    swapped = Model.load(convert(checkpoint, tmp_path / "swapped"))
    error_of(VocabularyMismatchError, lambda: Generator(target, swapped), "swapped (300)")
    assert len(Generator(target, target).generate("hi", **OPTIONS).tokens) == 8


def test_a_drafter_with_padded_vocabulary(target: Model, tmp_path: Path) -> None:
    checkpoint = write_tiny_gguf(tmp_path / "padded.gguf", vocab=320, metadata=tokenizer_fields())
    padded = Model.load(convert(checkpoint, tmp_path / "padded"))
    error_of(VocabularyMismatchError, lambda: Generator(target, padded), "padded", "320", "300")
    # The other way round is fine: every token that is proposed is one of the target's.
    generator = Generator(padded, target, draft_length=3)
    expected = Generator(padded).generate("hi", **OPTIONS).tokens
    assert generator.generate("hi", **OPTIONS).tokens == expected


def test_a_context_that_does_not_fit_into_memory(folder: Path) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    manifest["config"]["context"] = 2**31 - 1
    (folder / "model.json").write_text(json.dumps(manifest))
    model = Model.load(folder)
    error_of(InvalidInputError, lambda: Generator(model), "no memory", "max_context")
    Generator(model, max_context=100).generate("hi", **OPTIONS)


def test_a_manifest_that_does_not_fit_the_graph(folder: Path, capfd: Any) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    for key, value in (("layers", 5), ("layers", 1), ("kv_heads", 1), ("head_size", 100)):
        changed = {**manifest, "config": {**manifest["config"], key: value}}
        (folder / "model.json").write_text(json.dumps(changed))
        generator = Generator(Model.load(folder))
        error_of(ModelRunError, lambda g=generator: g.generate("hi"), "ONNX Runtime failed")
    assert capfd.readouterr() == ("", "")  # the runtime does not print what it raises


# Settings of a Generator


@pytest.mark.parametrize("k", [0, -1, 33, 10**6, 10**30, True, "5", "AUTO", None, 2.5])
def test_draft_lengths(target: Model, k: Any) -> None:
    message = error_of(
        InvalidInputError, lambda: Generator(target, target, draft_length=k), "draft_length is"
    )
    assert "1 to 32, or 'auto'" in message
    generator = Generator(target, target, draft_length=5)
    before = generator.generate("hi", **OPTIONS).tokens
    error_of(
        InvalidInputError, lambda: setattr(generator, "draft_length", k), str(k), "draft_length is"
    )
    assert generator.draft_length == 5
    assert generator.generate("hi", **OPTIONS).tokens == before


@pytest.mark.parametrize("acceptance", ["best", "", "BLOCK", None, 5, ["block"]])
def test_acceptance_rules(target: Model, acceptance: Any) -> None:
    error_of(
        InvalidInputError,
        lambda: Generator(target, acceptance=acceptance),
        "acceptance is",
        "'block'",
    )


@pytest.mark.parametrize("max_context", [0, 1, -5, 257, 10**6, True, "50", 2.5])
def test_contexts(target: Model, max_context: Any) -> None:
    error_of(
        InvalidInputError,
        lambda: Generator(target, max_context=max_context),
        *("max_context is", "2 to 256"),
    )


@pytest.mark.parametrize("matches", [(0, 4), (3, 2), (1, 10**6), ("a", 4), (1.5, 2), (True, 2)])
def test_ngram_lengths(matches: tuple[Any, Any]) -> None:
    error_of(InvalidInputError, lambda: Ngram(*matches), "_match is")


# Prompts


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ((), "the prompt is empty"),
        (None, "the prompt is None"),
        (5, "the prompt is 5"),
        (b"hi", "the prompt is b'hi'"),
        ({"role": "user", "content": "hi"}, "a list of messages"),
        ({1, 2}, "the prompt is {1, 2}"),
        (iter([1, 2]), "a list of token ids"),
        (["hi"], "prompt item 0 is 'hi'"),
        ([1, 2.0], "prompt item 1 is 2.0"),
        ([True], "prompt item 0 is True"),
        ([5, -1], "prompt token 1 is -1"),
        ([300], "prompt token 0 is 300"),
        ([2**70], "outside the vocabulary of 300"),
        (np.array([[1, 2]]), "prompt item 0"),
        ([{}], "message 0: 'role'"),
        ([{"role": "user"}], "message 0: 'content'"),
        ([{"role": "user", "content": ""}], "message 0: 'content' is empty"),
        ([{"role": "user", "content": None}], "message 0: 'content'"),
        ([{"role": "user", "content": "hi"}, 7], "prompt item 0"),
        ("\ud800", "surrogate"),
    ],
)
def test_prompts(target: Model, prompt: Any, named: str) -> None:
    generator = Generator(target, target, draft_length=3)
    before = generator.generate("hi", **OPTIONS).tokens
    error_of(InvalidInputError, lambda: generator.stream(prompt), named)
    if isinstance(prompt, str):
        error_of(InvalidInputError, lambda: generator.stream(prompt, raw=True), named)
    assert generator.generate("hi", **OPTIONS).tokens == before


def test_a_prompt_longer_than_the_context(target: Model) -> None:
    generator = Generator(target, target, max_context=64)
    for prompt in ([5] * 64, [5] * 1000, "x" * 500):
        error_of(ContextFullError, lambda prompt=prompt: generator.stream(prompt), "the context 64")
    result = generator.generate([5] * 63, **OPTIONS)
    assert (len(result.tokens), result.finish_reason) == (1, "length")
    error_of(ContextFullError, lambda: Generator(target).stream([5] * 256), "256 tokens")


# verify()

P = np.full((3, 4), 0.25)
Q = np.full((2, 4), 0.25)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("best", P, Q, [0, 1], 1), "acceptance"),
        (("block", P, Q, [0], 1), "shapes"),
        (("block", P, P, [0, 1, 2], 1), "shapes"),
        (("block", P[0], Q, [0, 1], 1), "target_probs has shape (4,)"),
        (("block", P[:0], Q[:0], [], 1), "target_probs has shape (0, 4)"),
        (("block", P, Q, [0, 4], 1), "vocabulary of 4"),
        (("block", P, Q, [0, -1], 1), "vocabulary of 4"),
        (("block", P, Q, [0, 1], -1), "seed is -1"),
        (("block", P, Q, [0, 1], 2**64), "seed is 18446744073709551616"),
        (("block", P, Q, [0, 1], 1.5), "seed is 1.5"),
        (("block", 2 * P, Q, [0, 1], 1), "add up to 1"),
        (("block", -P, Q, [0, 1], 1), "no probabilities"),
        (("block", P * np.nan, Q, [0, 1], 1), "no probabilities"),
        (("block", P, "q", [0, 1], 1), "draft_probs is no array"),
    ],
)
def test_verify(arguments: Any, named: str) -> None:
    error_of(InvalidInputError, lambda: verify(*arguments), named)
