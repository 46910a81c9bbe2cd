"""``specdec chat``: answers continue the conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specdec import Generator

SETTINGS = {"max_tokens": 12, "temperature": 1.0, "seed": 3}
OPTIONS = ("--max-tokens", 12, "--temperature", 1, "--seed", 3)


def test_a_conversation(cli: Any, tiny_target: Path) -> None:
    outcome = cli("chat", "-m", tiny_target, "-d", "none", *OPTIONS, stdin="hello\n\nand you?\n")
    generator = Generator(tiny_target)
    first = generator.generate("hello", **SETTINGS).text
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and you?"},
    ]
    second = generator.generate(messages, **SETTINGS).text
    assert outcome.code == 0
    # A text may end with "\r", which what captures the output takes for a part of the line's end.
    assert outcome.stdout == f"{first}\n{second}\n".replace("\r\n", "\n")
    assert len(outcome.stderr.splitlines()) == 2


def test_an_error_ends_it(cli: Any, tiny_target: Path) -> None:
    outcome = cli("chat", "-m", tiny_target, "--max-context", 8, stdin="hello\n")
    assert "the prompt has" in outcome.error
