"""From the names of a pair to tables and files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specdec import InvalidInputError, Model, PullError
from specdec.benchmark import PromptSet
from specdec.distill.evaluate import Difference, PairReport, Texts, evaluate_pair
from specdec.distill.evaluate.run import run_evaluation, split_pair, write_report
from specdec.distill.evaluate.table import markdown, print_report

FILES = ["evaluation.json", "evaluation.md", "evaluation.svg"]


@pytest.fixture(scope="module")
def report(tiny_target: Path, tiny_drafter: Path) -> PairReport:
    kinds = [PromptSet("chat", ("hello", "good evening")), PromptSet("code", ("x = 1", "y"))]
    target, draft = Model.load(tiny_target), Model.load(tiny_drafter)
    return evaluate_pair(
        target, draft, kinds, gammas=[2, 3], temperatures=[0, 1], max_tokens=16, seed=3
    )


@pytest.fixture
def settings(tmp_path: Path, specdec_home: Path) -> dict[str, Any]:
    file = tmp_path / "short.json"
    file.write_text('{"short": ["hello", "evening", "x"]}', encoding="utf-8")
    return {
        "kinds": [str(file)], "prompts_per_kind": 2, "gammas": [2], "temperatures": [0.0],
        "max_tokens": 6,
    }  # fmt: skip


def test_tables_and_files(
    tiny_target: Path,
    tiny_drafter: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "folder"
    found = run_evaluation(f"{tiny_target},{tiny_drafter}", output=output, **settings)
    assert found.prompts == {"short": 2}
    assert sorted(path.name for path in output.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert "target tiny (fused, CPU), drafter tiny-drafter (fused, CPU)" in printed
    assert "identical, token for token" in printed
    document = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert document["settings"]["prompts"] == {"short": 2}
    assert document["texts_identical"] is True
    assert (output / "evaluation.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")

    with pytest.raises(InvalidInputError, match=r"evaluation\.json: already exists"):
        run_evaluation(f"{tiny_target},ngram", output=output, **settings)
    run_evaluation(
        f"{tiny_target},ngram", output=output, replace=True, plot_format="png", **settings
    )
    document = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    assert document["machine"]["draft"] is None
    assert (output / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_figures_and_the_counts_they_come_from(report: PairReport) -> None:
    document = json.loads(report.to_json())
    assert document["format"] == 1
    assert document["settings"]["gammas"] == [2, 3]
    assert document["settings"]["seed"] == 3
    assert len(document["figures"]) == 2 * 3 * 2
    assert len(document["runs"]) == 4 * 5
    assert document["published"]["block_efficiency"] == 2.3
    assert "another pair" in document["published"]["note"]
    for figure in document["figures"]:
        runs = [
            run
            for run in document["runs"]
            if (run["gamma"], run["temperature"]) == (figure["gamma"], figure["temperature"])
            and figure["kind"] in (run["kind"], "all")
        ]
        tau = sum(run["tokens"] for run in runs) / sum(run["rounds"] for run in runs)
        assert figure["block_efficiency"]["value"] == pytest.approx(tau)
        c = document["cost_ratio"]["step_weights"]
        assert figure["mbsu"]["value"] == pytest.approx(tau / (1 + figure["gamma"] * c))
        assert len(figure["acceptance"]) == figure["gamma"]
        assert figure["block_efficiency"]["low"] <= tau <= figure["block_efficiency"]["high"]
    assert "runs" not in json.loads(report.to_json(runs=False))


def test_markdown_has_a_table_for_each_temperature(report: PairReport) -> None:
    text = markdown(report)
    assert text.count("## Temperature") == 2
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 * (2 + 3 * 2 + 1)
    assert len({line.count("|") for line in table}) == 1
    cell = report.cell("code", 3, 1.0)
    low, high = cell.block_efficiency.low, cell.block_efficiency.high
    row = next(line for line in table[9:] if line.startswith("| code | 3 |"))
    assert f"| {cell.block_efficiency.value:.2f} [{low:.2f}..{high:.2f}] |" in row
    assert table[-1].startswith("| Goel et al. 2403.00858 * | 3 |")
    assert "another pair of models" in text


def test_the_plot_is_the_same_each_time(report: PairReport, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert [file.name for file in write_report(report, first)] == [FILES[0], FILES[1], FILES[2]]
    write_report(report, second)
    svg = (first / "evaluation.svg").read_bytes()
    assert svg == (second / "evaluation.svg").read_bytes()
    for word in (b"temperature 1", b"k = 3", b"Goel et al. 2403.00858", b"position of the draft"):
        assert word in svg


def test_differing_texts_are_told(report: PairReport, capsys: pytest.CaptureFixture[str]) -> None:
    bad = replace(report, texts=Texts(8, (Difference("code", 1, 3, 5),)))
    print_report(bad)
    message = "1 of 8 greedy ones differ from the target's own, first code prompt 1 at k = 3, token"
    assert message in " ".join(capsys.readouterr().out.split())
    assert message in markdown(bad)
    assert "not compared" in markdown(replace(report, texts=None))


def test_pairs(tiny_target: Path, tiny_drafter: Path, specdec_home: Path) -> None:
    assert split_pair("one, two") == ("one", "two")
    assert split_pair("smollm2-135m-drafter") == ("smollm2-135m", "smollm2-135m-drafter")
    assert split_pair(str(tiny_drafter)) == ("tiny", str(tiny_drafter))


@pytest.mark.parametrize("pair", ["", "a,", ",b", "a,b,c"])
def test_faulty_pairs(pair: str) -> None:
    with pytest.raises(InvalidInputError, match="give TARGET,DRAFTER or a drafter"):
        split_pair(pair)


def test_a_model_that_names_no_target(tiny_target: Path, specdec_home: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not name its target; give TARGET,"):
        split_pair(str(tiny_target))
    with pytest.raises(InvalidInputError, match="smollm2-135m does not name its target"):
        split_pair("smollm2-135m")
    with pytest.raises(PullError, match="no model is known as"):
        split_pair("no-such-drafter")


def test_no_matplotlib_is_told_before_anything_is_loaded(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InvalidInputError, match="needs matplotlib"):
        run_evaluation("no,models", output=tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_written(
    report: PairReport, tmp_path: Path, settings: dict[str, Any]
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        run_evaluation("no,models", output=blocked / "x", **settings)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        write_report(report, blocked)
    with pytest.raises(InvalidInputError, match="must be svg or png"):
        run_evaluation("no,models", plot_format="gif", **settings)


def test_a_plot_that_fails_leaves_no_half_file(
    report: PairReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(report: PairReport, file: Path) -> None:
        file.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specdec.distill.evaluate.run.write_plot", fail)
    with pytest.raises(InvalidInputError, match=r"evaluation\.svg: cannot be written \(No space"):
        write_report(report, tmp_path / "x")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == FILES[:2]
    shutil.rmtree(tmp_path / "x")


def test_matplotlib_and_torch_are_imported_only_when_needed() -> None:
    code = (
        "import sys, specdec.distill.evaluate.run as run; "
        "print(sorted({'matplotlib', 'torch'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
