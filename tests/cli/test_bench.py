"""``specdec bench``: a table, a verdict on the texts, and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.cli.bench import parse_draft_lengths

SHORT = ("--repeat", 2, "--max-tokens", 8, "--k", "1,3", "--prompts")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "short.txt"
    path.write_text("hello\ngood evening\n", encoding="utf-8")
    return path


def test_table(cli: Any, tiny_target: Path, tiny_drafter: Path, prompts: Path) -> None:
    outcome = cli("bench", "-m", tiny_target, "-d", tiny_drafter, *SHORT, prompts)
    assert outcome.code == 0
    assert outcome.stderr == ""
    assert "prompts: short" in outcome.stdout
    for contestant in ("target alone", "k = 1", "k = 3", "auto", "n-gram"):
        assert f" {contestant} " in outcome.stdout
    assert "texts: identical, token for token, for all contestants" in outcome.stdout


def test_json(
    cli: Any, tiny_target: Path, tiny_drafter: Path, prompts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    cli("bench", "-m", tiny_target, "-d", tiny_drafter, *SHORT, prompts, "--json", file)
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["texts_identical"] is True
    assert report["machine"]["target"]["name"] == "tiny"
    assert report["machine"]["draft"]["name"] == "tiny-drafter"
    assert {"cpu", "logical_cores", "onnxruntime", "threads"} <= set(report["machine"])
    assert report["settings"]["prompts"] == {"short": 2}
    assert len(report["runs"]) == 2 * 2 * 5
    rows = {summary["contestant"]: summary for summary in report["summaries"]}
    assert rows["target alone"]["ratio"] == 1.0
    assert rows["target alone"]["block_efficiency"] == 1.0
    assert len(rows["k = 3"]["acceptance_by_position"]) == 3
    for row in rows.values():
        shares = row["draft_share"] + row["verify_share"] + row["other_share"]
        assert shares == pytest.approx(1.0)
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]


def test_json_on_standard_output(cli: Any, tiny_target: Path, prompts: Path) -> None:
    outcome = cli("bench", "-m", tiny_target, "-d", "ngram", *SHORT, prompts, "--json", "-")
    assert json.loads(outcome.stdout)["machine"]["draft"] is None
    assert "target alone" in outcome.stderr


def test_sampled_texts_are_not_compared(cli: Any, tiny_target: Path, prompts: Path) -> None:
    outcome = cli("bench", "-m", tiny_target, *SHORT, prompts, "--temperature", 1)
    assert "not compared" in outcome.stdout
    options = (*SHORT, prompts, "--temperature", 1, "--acceptance", "coupled")
    assert "texts: identical" in cli("bench", "-m", tiny_target, *options).stdout


def test_differing_texts_are_told(
    cli: Any, tiny_target: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specdec.benchmark import Difference

    found = [Difference("k = 3", "short", 1, 0, 5)]
    monkeypatch.setattr("specdec.benchmark.differences", lambda runs: found)
    outcome = cli("bench", "-m", tiny_target, "-d", "ngram", *SHORT, prompts)
    assert "texts: 1 of 16 differ" in outcome.stdout
    assert "first 'k = 3' on short prompt 1 at token 5" in outcome.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "0"], "--k is '0'; draft lengths go from 1 to"),
        (["--k", "8..1"], "draft lengths go from 1 to"),
        (["--k", "1..1000000"], "draft lengths go from 1 to"),
        (["--k", "a"], "--k is 'a'"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--prompts", "poems"], "neither a kind of prompts"),
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--json", "/proc/nothing/x.json"], "cannot be written"),
        (["--max-context", "8"], "the prompt has"),
    ],
)
def test_errors(cli: Any, tiny_target: Path, options: list[str], message: str) -> None:
    outcome = cli("bench", "-m", tiny_target, *options)
    assert outcome.code == 2
    assert message in outcome.error


def test_a_prompt_longer_than_the_context(cli: Any, tiny_target: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("word " * 300, encoding="utf-8")
    outcome = cli("bench", "-m", tiny_target, "--prompts", path)
    assert "the longest prompt has" in outcome.error


def test_draft_lengths() -> None:
    assert parse_draft_lengths("1..8") == list(range(1, 9))
    assert parse_draft_lengths("4") == [4]
    assert parse_draft_lengths("6,2,4..5,4") == [2, 4, 5, 6]
