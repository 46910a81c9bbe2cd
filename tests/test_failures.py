"""What goes wrong gives one clear line and leaves nothing broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specdec.session
from specdec import (
    CheckpointError,
    ContextFullError,
    Generator,
    InvalidInputError,
    Model,
    ModelFolderError,
    ModelRunError,
    Ngram,
    PullError,
    SpecdecError,
    VocabularyMismatchError,
    verify,
)
from specdec.convert import convert
from tests.tiny_gguf import tokenizer_fields, write_tiny_gguf

OPTIONS: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


def error_of(kind: type[SpecdecError], action: Callable[[], object], *names: str) -> str:
    """The message of the error that ``action`` raises: one line, which names what is wrong."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert type(caught.value).__module__ == "specdec.errors"
    assert message
    assert "\n" not in message
    for name in names:
        assert name in message, message
    return message


@pytest.fixture(scope="module")
def target(tiny_target: Path) -> Model:
    return Model.load(tiny_target)


@pytest.fixture
def folder(tiny_target: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_target, tmp_path / "copy"))


# Checkpoints


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    whole = tiny_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    error_of(CheckpointError, lambda: convert(cut, tmp_path / "model"), "cut.gguf")
    assert os.listdir(tmp_path) == ["cut.gguf"]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGML" + bytes(1000))
    error_of(CheckpointError, lambda: convert(other, tmp_path / "model"), "other.gguf", "GGUF")
    assert os.listdir(tmp_path) == ["other.gguf"]


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    error_of(CheckpointError, lambda: convert(tmp_path / "no.gguf", tmp_path / "model"), "no.gguf")
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    bare = write_tiny_gguf(tmp_path / "bare.gguf", tokenizer=False)
    error_of(CheckpointError, lambda: convert(bare, tmp_path / "model"), "tokenizer.ggml.")
    assert os.listdir(tmp_path) == ["bare.gguf"]


KILLED_CONVERSION = """
import sys, time
from pathlib import Path
from specdec.convert import convert

def progress(stage, fraction):
    if stage == "writing the graph" and fraction > 0.4:
        print("writing", flush=True)
        time.sleep(60)

convert(Path(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


def test_a_killed_conversion(tiny_gguf: Path, tmp_path: Path) -> None:
    destination = tmp_path / "model"
    command = [sys.executable, "-c", KILLED_CONVERSION, str(tiny_gguf), str(destination)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    left = list(tmp_path.iterdir())
    assert left  # it was killed in the middle
    assert destination not in left
    for path in [destination, *left]:
        error_of(ModelFolderError, lambda path=path: Model.load(path), str(path))
    Model.load(convert(tiny_gguf, destination))
    assert list(tmp_path.iterdir()) == [destination]


@pytest.mark.skipif(sys.platform == "win32", reason="another signal there")
def test_an_interrupted_conversion(tiny_gguf: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, fraction: float) -> None:
        if fraction > 0.4:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_gguf, tmp_path / "model", progress=interrupt)
    assert os.listdir(tmp_path) == []


# Model folders


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"]
)
@pytest.mark.parametrize("how", ["missing", "altered", "truncated"])
def test_a_damaged_folder(folder: Path, name: str, how: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "altered":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2])
    error_of(ModelFolderError, lambda: Model.load(folder), str(file), "pull or convert it again")


def test_a_folder_without_a_manifest(folder: Path) -> None:
    (folder / "model.json").unlink()
    error_of(ModelFolderError, lambda: Model.load(folder), str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1}'])
def test_a_manifest_that_is_none(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    error_of(ModelFolderError, lambda: Model.load(folder), "model.json")


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


# Models that fail while they run


class FailingSession:
    """Stands in for ONNX Runtime's session and fails at its ``step``-th step."""

    def __init__(self, session: Any, step: int) -> None:
        self._session = session
        self._left = step

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("[ONNXRuntimeError] : 6 : OUT_OF_MEMORY\nwhile running node 'qkv'")
        self._session.run_with_iobinding(binding)


@pytest.mark.parametrize("who", ["target", "drafter"])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_the_runtime_fails_in_a_step(
    tiny_target: Path, tiny_drafter: Path, target: Model, who: str, step: int
) -> None:
    models = {"target": Model.load(tiny_target), "drafter": Model.load(tiny_drafter)}
    session = models[who]._session
    session._session = FailingSession(session._session, step)
    generator = Generator(models["target"], models["drafter"], draft_length=3)
    message = error_of(ModelRunError, lambda: generator.generate("hi", **OPTIONS), "OUT_OF_MEMORY")
    assert "ONNX Runtime failed in a step" in message
    expected = Generator(target).generate("hi", **OPTIONS).tokens
    assert generator.generate("hi", **OPTIONS).tokens == expected
    # And once more, now that the caches hold it.
    assert generator.generate("hi", **OPTIONS).tokens == expected


def test_a_step_that_the_runtime_refuses(target: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real runtime's own complaint: it is told of a shape that does not fit.
    original = specdec.session._Runner.attach

    def attach(self: Any, decoder: Any) -> None:
        original(self, decoder)
        dtype, shape, address = self._buffers["key.1"]
        self._buffers["key.1"] = dtype, [*shape[:3], shape[3] // 2], address

    with monkeypatch.context() as patch:
        patch.setattr(specdec.session._Runner, "attach", attach)
        generator = Generator(target)
    error_of(ModelRunError, lambda: generator.generate("hi", **OPTIONS))


def test_logits_that_are_no_numbers(target: Model) -> None:
    generator = Generator(target, target, draft_length=3)
    before = generator.generate("hi", **OPTIONS).tokens
    ban_all = dict.fromkeys(range(300), -np.inf)
    for temperature in (0, 1):
        error_of(
            ModelRunError,
            lambda temperature=temperature: generator.generate(
                "hi", logit_bias=ban_all, temperature=temperature
            ),
            "every token is banned",
        )
    assert generator.generate("hi", **OPTIONS).tokens == before


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
