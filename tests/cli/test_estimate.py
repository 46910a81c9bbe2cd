"""``specdec estimate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


def test_estimate_of_a_recipe(cli: Cli) -> None:
    outcome = cli(
        "estimate", "llama-2-7b-chat", "--draft", "llama-2-chat-drafter-115m",
        "--soc", "sm8650", "--plain", "12.85", "--acceptance", "0.7", "--json",
    )  # fmt: skip
    (document,) = json.loads(outcome.stdout)
    assert document["plain_tokens_per_second"] == pytest.approx(12.85)
    assert document["target"]["bytes_from"] == "count"
    (best,) = document["speculative"]
    assert best["ratio"] == pytest.approx(best["tokens_per_second"] / 12.85)
    assert 2 < best["ratio"] < 3
    text = cli("estimate", "llama-2-7b-chat", "--soc", "x-elite").stdout
    assert "x-elite" in text
    assert "x target" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "'no-such' is neither a model folder nor a known model with a shape"),
        (["llama-2-7b-chat", "--soc", "sm1"], "no published speeds for 'sm1': choose one of"),
        (["llama-2-7b-chat", "--layout", "w2"], "no layout 'w2': choose one of w4a16"),
        (["llama-2-7b-chat", "--context", "-1"], "past is -1; it must be at least 0"),
        (["llama-2-7b-chat", "--plain", "1000"], "cannot make 1000 tokens per second"),
        (
            ["llama-2-7b-chat", "-d", "llama-2-chat-drafter-115m", "--acceptance", "2"],
            "acceptance is 2.0; it must be between 0 and 1",
        ),
    ],
)
def test_wrong_arguments_are_told_in_a_line(cli: Cli, arguments: list[str], message: str) -> None:
    assert message in cli("estimate", *arguments).error


def test_an_attached_drafter_is_told_in_a_line(cli: Cli, tiny_attached: Path) -> None:
    outcome = cli("estimate", "llama-2-7b-chat", "-d", tiny_attached)
    assert outcome.code == 2
    assert "an attached drafter, which runs on the CPU only; take a standalone" in outcome.error
