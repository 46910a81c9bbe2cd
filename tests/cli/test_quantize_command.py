"""``specdec quantize``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from specdec.model_folder import ModelFolder
from specdec.recipe import load_recipe

QUICK = ("--context", 64, "--widths", 8, "--written-tokens", 0, "--method", "rtn")


def test_quantize_prints_the_folder_and_reports(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    folder, report = tmp_path / "made", tmp_path / "report"
    text = tmp_path / "text.txt"
    text.write_text("A few words to measure on.")
    outcome = cli(
        "quantize", tiny_gguf, "-o", folder, *QUICK, "--name", "small", "--report", report,
        "--held-out", text,
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout == f"{folder}\n"
    assert "specdec: small: writing the graphs" in outcome.stderr
    assert "| w8a16, rtn |" in outcome.stderr
    assert "| w8a16, rtn |" in report.with_suffix(".md").read_text()
    made = ModelFolder.open(folder)
    assert (made.name, made.layout, made.backend) == ("small", "w8a16", "qnn")


def test_quantize_to_fp16(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    arguments = ["--context", 64, "--widths", "8", "--layout", "fp16"]
    assert cli("quantize", tiny_gguf, "-o", tmp_path / "made", *arguments).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "w3a16"], "no layout 'w3a16'"),
        (["--method", "magic"], "no method 'magic'"),
        (["--widths", "8,many"], "give whole numbers divided by commas"),
        (["--widths", ""], "give whole numbers divided by commas"),
        (["--mixed", "5"], "with a layout of 4 bits"),
        (["--calibration", "nothing.txt"], "nothing.txt: cannot be read"),
        (["--context", "100000"], "a context of 100000"),
    ],
)
def test_quantize_errors(
    cli: Any, tiny_gguf: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = cli("quantize", tiny_gguf, "-o", tmp_path / "made", *QUICK, *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr.splitlines()[-1]
    assert list(tmp_path.glob("*made*")) == []


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b" \n\f\n "])
def test_quantize_with_a_bad_calibration_file(
    cli: Any, tiny_gguf: Path, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    outcome = cli("quantize", tiny_gguf, "-o", tmp_path / "made", *QUICK, "--calibration", file)
    assert outcome.code == 2
    assert "text.txt" in outcome.error
    assert not (tmp_path / "made").exists()


def test_quantize_of_a_damaged_checkpoint(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(whole[: len(whole) // 2])
    outcome = cli("quantize", damaged, "-o", tmp_path / "made", *QUICK)
    assert outcome.code == 2
    assert "damaged.gguf" in outcome.stderr.splitlines()[-1]
    assert not (tmp_path / "made").exists()


def test_quantize_of_nothing(cli: Any, tmp_path: Path) -> None:
    outcome = cli("quantize", tmp_path / "nothing.gguf", "-o", tmp_path / "made")
    assert outcome.code == 2
    assert "nothing.gguf" in outcome.stderr.splitlines()[-1]


def test_quantize_of_a_model_that_its_user_brings(cli: Any, tmp_path: Path) -> None:
    outcome = cli("quantize", "llama-2-7b-chat", "-o", tmp_path / "made")
    assert outcome.code == 2
    assert "cannot be fetched" in outcome.error


def test_quantize_by_name(
    cli: Any, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(recipe: Any, downloads: Path, progress: Any) -> Any:
        assert recipe.name == "smollm2-135m"
        return nullcontext(tiny_gguf)

    monkeypatch.setattr("specdec.checkpoint_source.checkpoint", fetch)
    assert cli("quantize", "smollm2-135m", "-o", tmp_path / "made", *QUICK).code == 0
    recommended = load_recipe("smollm2-135m").sampling
    assert ModelFolder.open(tmp_path / "made").sampling == dict(recommended)


def test_quantize_replaces_only_when_told(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert cli("quantize", tiny_gguf, "-o", folder, *QUICK).code == 0
    assert "already exists" in cli("quantize", tiny_gguf, "-o", folder, *QUICK).error
    assert cli("quantize", tiny_gguf, "-o", folder, *QUICK, "--replace").code == 0
