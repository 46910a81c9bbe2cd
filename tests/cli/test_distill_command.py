"""``specdec distill``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from specdec.distill.checkpoint import Position
from specdec.distill.options import Options, check_same
from specdec.distill.plot import fit, plot_run
from specdec.distill.progress import Log, duration, read_log
from specdec.errors import InvalidInputError
from specdec.model_folder import ModelFolder
from tests.distill.runs import write_shard
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "target.gguf"
    return write_tiny_gguf(path, layers=4, context=2048)


def test_make_plot_and_evaluate(cli: Any, target: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "text", "a", seed=0, conversations=120)
    output = tmp_path / "small"
    made = cli(
        "distill", target, "-o", output, "--text", tmp_path / "text", "--tokens", 600,
        "--batch-tokens", 200, "--target-layers", "0,2", "--head", 200, "--dtype", "float32",
        "--evaluate-tokens", 100, "--prompts-per-kind", 0, "--loss", "lk_mix",
        "--optimizer", "muon",
    )  # fmt: skip
    assert made.code == 0, made.stderr
    assert made.stdout == f"{output}\n"
    assert "rows of the head    200 of 300" in made.stderr
    assert "training on 600 tokens" in made.stderr
    assert "held out, in 8 bits: acceptance by draft" in made.stderr
    assert ModelFolder.open(output).manifest["distillation"]["loss"]["kind"] == "lk_mix"

    plotted = cli("distill", "--plot", f"{output}.work")
    assert plotted.stdout == f"{output}.work/training.svg\n"
    picture = (tmp_path / "small.work" / "training.svg").read_text()
    assert "held out, draft 3" in picture
    assert cli("distill", "--plot", f"{output}.work").code == 0
    assert (tmp_path / "small.work" / "training.svg").read_text() == picture

    again = cli("distill", target, "-o", output, "--text", tmp_path / "text")
    assert "already exists" in again.error

    (tmp_path / "prompts.txt").write_text("the dog\nthe fox\n")
    assert cli("convert", target, "-o", tmp_path / "whole").code == 0
    measured = cli(
        "distill", "--evaluate", f"{tmp_path / 'whole'},{output}", "--kinds",
        tmp_path / "prompts.txt", "--gammas", "2", "--temperatures", "0", "--max-tokens", 8,
    )  # fmt: skip
    assert measured.code == 0, measured.stderr
    assert "prompts: 2 prompts" in measured.stdout
    assert "identical, token for token" in measured.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give TARGET and -o DRAFTER"),
        (["TARGET"], "give TARGET and -o DRAFTER"),
        (["TARGET", "--evaluate", "a,b"], "give one of TARGET, --evaluate PAIR and --plot WORK"),
        (["--plot", "nowhere"], "nowhere: has no training log"),
        (["--evaluate", "a,b,c"], "give TARGET,DRAFTER or a drafter"),
        (["--evaluate", "a,b", "--gammas", "x"], "--gammas is 'x': give whole numbers"),
        (["nothing", "-o", "OUT"], "nothing: no such file or folder, and no known model"),
        (["llama-2-7b-chat", "-o", "OUT"], "llama-2-7b-chat is yours to bring: get the folder"),
        (["smollm2-135m-drafter", "-o", "OUT"], "is a drafter; name its target, smollm2-135m"),
        (["TARGET", "-o", "OUT", "--kind", "x"], "no kind 'x': choose one of"),
        (["TARGET", "-o", "OUT", "--loss", "x"], "no loss 'x': choose one of kl, reverse_kl"),
        (["TARGET", "-o", "OUT", "--optimizer", "x"], "no optimizer 'x'"),
        (["TARGET", "-o", "OUT", "--layout", "x"], "no layout 'x'"),
        (["TARGET", "-o", "OUT", "--size", "x"], "'x' is no size"),
        (["TARGET", "-o", "OUT", "--target-layers", "0,9"], "give some of 0 to 3"),
        (["TARGET", "-o", "OUT", "--target-layers", "0,x"], "--target-layers is '0,x'"),
        (["TARGET", "-o", "OUT", "--minutes", "5", "--tokens", "9"], "both minutes and tokens"),
        (["TARGET", "-o", "OUT", "--tokens", "0"], "tokens is 0; it must be a whole number"),
        (["TARGET", "-o", "OUT", "--on-policy", "2"], "on_policy is 2.0; it must be in 0..1"),
        (["TARGET", "-o", "OUT", "--text", "nowhere"], "nowhere: holds no text"),
        (["TARGET", "-o", "OUT", "--device", "abacus"], "no device 'abacus' here"),
        (["TARGET", "-o", "OUT", "--initial", "nowhere.pt"], "nowhere.pt: weights cannot be read"),
        (
            ["TARGET", "-o", "OUT", "--kind", "attached", "--layout", "w8a16"],
            "is for an NPU, where a drafter has K/V of its own",
        ),
    ],
)
def test_errors(cli: Any, target: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"TARGET": str(target), "OUT": str(tmp_path / "out")}
    outcome = cli("distill", *(places.get(argument, argument) for argument in arguments))
    assert message in outcome.error
    assert not (tmp_path / "out").exists()


def test_without_torch(
    cli: Any, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = cli("distill", target, "-o", tmp_path / "out")
    assert outcome.error == "making a drafter needs PyTorch; run: pip install 'specdec[distill]'"


def test_the_command_line_does_not_load_torch() -> None:
    import subprocess

    code = "import sys, specdec, specdec.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_options_are_named() -> None:
    found = Options(rate=1e-3).deciding()
    check_same(found, Options(rate=1e-3, threads=4, save_seconds=1), Path("out.work"))
    with pytest.raises(InvalidInputError, match=r"begun with rate = 0\.001, not 0\.0008; go on"):
        check_same(found, Options(), Path("out.work"))


def test_a_log_goes_on_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, step=-1)
    for step in range(4):
        log.write(step=step, loss=float(step))
    log.close()
    with path.open("a") as stream:
        stream.write('{"step": 4, "lo')  # killed while writing
    assert [entry["step"] for entry in read_log(path)] == [0, 1, 2, 3]
    log = Log(path, step=1)
    log.write(step=2, loss=5.0)
    log.close()
    assert [(entry["step"], entry["loss"]) for entry in read_log(path)] == [(0, 0), (1, 1), (2, 5)]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_curve_is_found_again() -> None:
    tokens = [0, 1e5, 2e5, 4e5, 8e5, 1.6e6]
    values = [0.3, *(0.6 - 20 * t**-0.4 for t in tokens[1:])]
    curve = fit(tokens, values)
    assert curve is not None
    assert curve.limit == pytest.approx(0.6, abs=1e-3)
    assert curve.exponent == pytest.approx(0.4, abs=0.01)
    assert curve.at(3.2e6) == pytest.approx(0.6 - 20 * 3.2e6**-0.4, abs=1e-3)
    assert fit(tokens[:4], values[:4]) is None


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl", step=-1)
    log.write(step=1, tokens=10, loss=1.0, acceptance=0.5)
    log.close()
    with pytest.raises(InvalidInputError, match=r"ends in \.svg or \.png"):
        plot_run(tmp_path, tmp_path / "picture.txt")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        plot_run(tmp_path, tmp_path / "none" / "picture.svg")
    assert plot_run(tmp_path, plot_format="png").stat().st_size > 1000


def test_durations() -> None:
    assert [duration(s) for s in (5, 89, 300, 3600 * 3 + 300)] == [
        "5 s",
        "89 s",
        "5 min",
        "3 h 05 min",
    ]
    assert Position().tokens == 0
