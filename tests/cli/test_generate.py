"""``specdec generate``: exactly the model's text, its sources, its errors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from specdec import Generator
from specdec.cli.models import known_drafter
from specdec.convert import convert
from tests.tiny_gguf import write_tiny_gguf

SETTINGS = {"max_tokens": 24, "temperature": 1.0, "seed": 5}
OPTIONS = ("--max-tokens", 24, "--temperature", 1, "--seed", 5, "--acceptance", "coupled")


@pytest.fixture(scope="module")
def generator(tiny_target: Path) -> Generator:
    return Generator(tiny_target, acceptance="coupled")


def test_standard_output_is_the_text_and_nothing_else(
    cli: Any, generator: Generator, tiny_target: Path, tiny_drafter: Path
) -> None:
    outcome = cli("generate", "hello", "-m", tiny_target, "-d", tiny_drafter, *OPTIONS)
    expected = generator.generate("hello", **SETTINGS)
    assert outcome.code == 0
    assert outcome.stdout == expected.text
    assert len(expected.text) > 5


def test_figures_on_standard_error(cli: Any, tiny_target: Path, tiny_drafter: Path) -> None:
    outcome = cli("generate", "hello", "-m", tiny_target, "-d", tiny_drafter, "-k", 3, *OPTIONS)
    (line,) = outcome.stderr.splitlines()
    assert "tiny drafted by tiny-drafter" in line
    assert "24 tokens" in line
    assert "acceptance" in line
    assert "\x1b" not in line  # no colours where it is no terminal


@pytest.mark.parametrize("command", ["generate", "chat", "bench"])
def test_lookups_can_be_switched_off(
    cli: Any,
    tiny_target: Path,
    tiny_drafter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    asked: list[bool] = []
    make = Generator.__init__

    def recorded(self: Generator, target: Any, draft: Any = None, **options: Any) -> None:
        if draft is not None:
            asked.append(options["lookup"])
        make(self, target, draft, **options)

    monkeypatch.setattr(Generator, "__init__", recorded)
    (tmp_path / "prompts.txt").write_text("hello\n")
    own = {
        "generate": ["hello"],
        "chat": [],
        "bench": ["-p", tmp_path / "prompts.txt", "--k", "1", "--repeat", "1"],
    }[command]
    models = ["-m", tiny_target, "-d", tiny_drafter, "-n", 4, "-t", 0, "--threads", 1]
    for flags, expected in ((["--no-lookup"], False), ([], True)):
        asked.clear()
        assert cli(command, *own, *models, *flags, stdin="hello\n").code == 0
        assert asked
        assert set(asked) == {expected}


@pytest.mark.parametrize("draft", ["ngram", "none"])
def test_without_a_drafting_model(cli: Any, tiny_target: Path, draft: str) -> None:
    outcome = cli("generate", "hello", "-m", tiny_target, "-d", draft, *OPTIONS)
    assert outcome.code == 0
    assert ("without a drafter" in outcome.stderr) == (draft == "none")


def test_a_folder_has_no_known_drafter(cli: Any, tiny_target: Path) -> None:
    assert "without a drafter" in cli("generate", "hi", "-m", tiny_target, *OPTIONS).stderr


def test_target_as_its_own_drafter(cli: Any, tiny_target: Path) -> None:
    outcome = cli(
        *("generate", "hello", "-m", tiny_target, "-d", tiny_target),
        *("-n", 20, "-t", 0, "-k", 4, "--threads", 1),
    )
    assert "tiny drafted by tiny " in outcome.stderr


def test_no_stats(cli: Any, tiny_target: Path) -> None:
    assert cli("generate", "hello", "-m", tiny_target, *OPTIONS, "--no-stats").stderr == ""


def test_prompt_from_standard_input(cli: Any, generator: Generator, tiny_target: Path) -> None:
    outcome = cli("generate", "-", "-m", tiny_target, *OPTIONS, stdin="a cat\nand a dog\n")
    assert outcome.stdout == generator.generate("a cat\nand a dog", **SETTINGS).text


def test_raw_keeps_the_last_newline(cli: Any, generator: Generator, tiny_target: Path) -> None:
    outcome = cli("generate", "-", "--raw", "-m", tiny_target, *OPTIONS, stdin="one\ntwo\n")
    assert outcome.stdout == generator.generate("one\ntwo\n", raw=True, **SETTINGS).text


def test_system_message(cli: Any, generator: Generator, tiny_target: Path) -> None:
    outcome = cli("generate", "hello", "--system", "be kind", "-m", tiny_target, *OPTIONS)
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
    ]
    assert outcome.stdout == generator.generate(messages, **SETTINGS).text


def test_stop_strings_may_be_repeated(cli: Any, generator: Generator, tiny_target: Path) -> None:
    whole = generator.generate("hello", **SETTINGS).text
    stop = whole[4:6]
    outcome = cli(
        *("generate", "hello", "-m", tiny_target, *OPTIONS),
        *("--stop", "never to be found", "--stop", stop),
    )
    assert outcome.stdout == whole[: whole.index(stop)]


def test_truncating_options_are_passed_on(
    cli: Any, generator: Generator, tiny_target: Path
) -> None:
    outcome = cli(
        *("generate", "hello", "-m", tiny_target, *OPTIONS),
        *("--top-k", 7, "--top-p", 0.8, "--min-p", 0.02),
    )
    expected = generator.generate("hello", **SETTINGS, top_k=7, top_p=0.8, min_p=0.02)
    assert outcome.stdout == expected.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-m", "smollm"], "no model is known as 'smollm'"),
        (["-m", "./nowhere"], "no model is known as './nowhere'"),
        (["-d", "nowhere"], "no model is known as 'nowhere'"),
        (["-d", "ngram", "-k", "0"], "draft_length is 0; it must be 1 to"),
        (["-d", "ngram", "-k", "-1"], "draft_length is -1; it must be 1 to"),
        (["-d", "ngram", "-k", "1000000"], "draft_length is 1000000; it must be 1 to"),
        (["-k", "many"], "--draft-length is 'many'; it must be a number or 'auto'"),
        (["--max-context", "16"], "the prompt has"),
        (["--max-context", "1"], "max_context is 1"),
        (["--max-context", "100000"], "max_context is 100000"),
        (["-t", "-1"], "temperature is -1"),
        (["--top-p", "0"], "top_p is 0"),
        (["--top-k", "-3"], "top_k is -3"),
        (["-n", "0"], "max_tokens is 0"),
        (["--seed", "-5"], "seed is -5"),
        (["--stop", ""], "a stop string is empty"),
        (["--acceptance", "hope"], "acceptance is 'hope'"),
        (["--threads", "0"], "threads is 0"),
        (["--raw", "--system", "be kind"], "--system needs the chat template"),
    ],
)
def test_errors_are_one_line(cli: Any, tiny_target: Path, options: list[str], message: str) -> None:
    outcome = cli("generate", "a prompt of some length", "-m", tiny_target, *options)
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.parametrize("stdin", ["", "\n"])
def test_empty_prompt_from_standard_input(cli: Any, tiny_target: Path, stdin: str) -> None:
    assert cli("generate", "-", "-m", tiny_target, stdin=stdin).error == "the prompt is empty"


def test_empty_prompt(cli: Any, tiny_target: Path) -> None:
    assert cli("generate", "", "-m", tiny_target).error == "the prompt is empty"


def test_standard_input_that_is_not_text(cli: Any, tiny_target: Path) -> None:
    outcome = cli("generate", "-", "-m", tiny_target, stdin=b"\xff\xfe nothing")
    assert "not UTF-8" in outcome.error


def test_vocabulary_mismatch(cli: Any, tiny_target: Path, tmp_path: Path) -> None:
    other = convert(write_tiny_gguf(tmp_path / "other.gguf", vocab=290), tmp_path / "other")
    outcome = cli("generate", "hello", "-m", tiny_target, "-d", other)
    assert outcome.code == 2
    assert "do not share one vocabulary" in outcome.error


def test_damaged_model_folder(cli: Any, tiny_target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_target, folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json: missing" in cli("generate", "hello", "-m", folder).error


def test_known_drafter_of_the_default_model() -> None:
    assert known_drafter("smollm2-135m") == "smollm2-135m-drafter"
    assert known_drafter("smollm2-135m-standalone-drafter") is None


def test_a_drafter_that_users_fetch_is_known_once_it_is_there(specdec_home: Path) -> None:
    assert known_drafter("llama-2-7b-chat") is None
    folder = specdec_home / "models" / "llama-2-chat-drafter-115m"
    folder.mkdir(parents=True)
    (folder / "model.json").touch()
    assert known_drafter("llama-2-7b-chat") == "llama-2-chat-drafter-115m"
