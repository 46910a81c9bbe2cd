"""From a target to a drafter that drafts for it, stage by stage."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specdec import Generator, Model, SamplingParams
from specdec.convert.gguf_reader import GgufFile
from specdec.distill import measure
from specdec.distill.build import read_weights
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
from specdec.distill.progress import read_log
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.model_folder import ModelFolder
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_huggingface import write_tiny_huggingface

QUICK = Options(
    text_tokens=6000,
    tokens=1200,
    batch_tokens=400,
    evaluate_tokens=600,
    length=48,
    conversations=128,
    target_layers=(0, 2),
    head=200,
    dtype="float32",
    prompts_per_kind=3,
    warmup=2,
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A context that the prompts of the benchmark fit into.
    path = tmp_path_factory.mktemp("gguf") / "target.gguf"
    return write_tiny_gguf(path, layers=4, context=2048)


def trained(output: Path) -> dict[str, torch.Tensor]:
    return read_weights(output.with_name(f"{output.name}.work") / "train" / "checkpoint.pt")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def made(target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    said: list[str] = []
    output = tmp_path_factory.mktemp("made") / "small"
    return distill(str(target), output, QUICK, say=said.append), said


def test_a_drafter_comes_out_and_drafts(made: tuple[Path, list[str]]) -> None:
    output, said = made
    folder = ModelFolder.open(output)
    assert (folder.name, folder.role) == ("small", "drafter")
    assert folder.config.target_layers == (0, 2)
    assert folder.config.head_size == 200
    record = folder.manifest["distillation"]
    work = output.with_name("small.work")
    assert record == json.loads((work / "report.json").read_text())
    assert record["target"]["sha256"] == folder.source["target_sha256"]
    assert len(record["text"]["manifest_sha256"]) == 64
    assert record["loss"]["kind"] == "lk"
    assert record["tokens_seen"] >= 1200
    assert 0.75 < record["logit_scale"] < 1.3
    figures = record["acceptance"]["held_out"]
    assert set(figures) == {"float", "int8", "whole_head"}
    for name in ("int8", "whole_head"):
        assert figures[name]["acceptance"] != figures["float"]["acceptance"]
        assert figures[name]["acceptance"][0] == pytest.approx(
            figures["float"]["acceptance"][0], abs=0.05
        )
    runtime = record["acceptance"]["runtime"]
    assert runtime["texts_identical"]
    assert {cell["temperature"] for cell in runtime["cells"]} == {0.0, 1.0}
    assert said[0].split() == ["target", "target"]
    assert any("attached" in line for line in said)
    assert any("held out, in 8 bits" in line for line in said)

    models = [Model.load(path) for path in (work / "target", output)]
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    pair, alone = Generator(*models), Generator(models[0])
    assert pair.generate("the dog", greedy).tokens == alone.generate("the dog", greedy).tokens


def test_a_drafter_in_4_bits(target: Path, made: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Trained through its rounding, it is exported as it was trained, and drafts."""
    text = made[0].with_name("small.work") / "text"
    said: list[str] = []
    options = replace(QUICK, weights="q4_1", text=str(text), text_tokens=None)
    output = distill(str(target), tmp_path / "four", options, say=said.append)
    record = ModelFolder.open(output).manifest["distillation"]
    figures = record["acceptance"]["held_out"]
    assert set(figures) == {"float", "int4", "whole_head"}
    assert figures["int4"]["acceptance"] != figures["float"]["acceptance"]
    assert record["acceptance"]["runtime"]["texts_identical"]
    assert any("held out, in 4 bits" in line for line in said)
    file = GgufFile(tmp_path / "four.work" / "drafter.gguf")
    kinds = {tensor.type_name for tensor in file.tensors.values() if len(tensor.shape) == 2}
    assert kinds == {"Q4_1"}


def test_4_bits_need_a_gguf_targets_embedding(tmp_path: Path) -> None:
    target = write_tiny_huggingface(tmp_path / "target", layers=2)
    with pytest.raises(InvalidInputError, match="weights 'q4_1' are for a drafter with the embed"):
        distill(str(target), tmp_path / "out", replace(QUICK, weights="q4_1", target_layers=(0, 1)))


def test_held_out_and_runtime_figures_agree(made: tuple[Path, list[str]]) -> None:
    """The same acceptance in training, on the target's text, and in the runtime, as it drafts.

    Both are means over few tokens of random text, so they agree roughly.
    """
    record = ModelFolder.open(made[0]).manifest["distillation"]["acceptance"]
    held_out = record["held_out"]["int8"]["acceptance"][0]
    (cell,) = [
        cell
        for cell in record["runtime"]["cells"]
        if cell["kind"] == "all" and cell["temperature"] == 1
    ]
    assert cell["acceptance"][0] == pytest.approx(held_out, abs=0.15)


class Killed(Exception):
    """Stands for what ends a process."""


@pytest.mark.parametrize(
    "place", ["write_text", "write_states", "initialise", "run", "finish", "write_manifest"]
)
def test_killed_in_any_stage_and_gone_on(
    target: Path,
    made: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Ends with the weights of an undisturbed run, and a whole folder; before, there is none."""
    output = tmp_path / "small"
    where: Any = {
        "write_text": "specdec.distill.run.write_text",
        "write_states": "specdec.distill.run.write_states",
        "initialise": "specdec.distill.build.initialise",
        "run": "specdec.distill.train.Trainer._tell",
        "finish": "specdec.distill.finish.compare",
        "write_manifest": "specdec.distill.finish.write_manifest",
    }[place]
    left = 2  # later calls than the first, where there are any

    def kill(*arguments: object, **options: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 or place in ("initialise", "finish", "write_manifest"):
            raise Killed
        return original(*arguments, **options)

    module, _, name = where.rpartition(".")
    holder: Any = importlib.import_module(module.removesuffix(".Trainer"))
    if module.endswith(".Trainer"):
        holder = holder.Trainer
    original = getattr(holder, name)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, kill)
        if place in ("write_text", "write_states"):  # there is one call of these: end after it
            patch.setattr(holder, name, _then_die(original))
        with pytest.raises(Killed):
            distill(str(target), output, replace(QUICK, prompts_per_kind=0))
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small.work"]
    distill(str(target), output, replace(QUICK, prompts_per_kind=0))
    assert same(trained(output), trained(made[0]))
    assert ModelFolder.open(output).manifest["files"] == ModelFolder.open(made[0]).manifest["files"]


def _then_die(original: Any) -> Any:
    def call(*arguments: object, **options: object) -> None:
        original(*arguments, **options)
        raise Killed

    return call


def test_a_standalone_drafter_with_other_text(
    target: Path, made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    text = made[0].with_name("small.work") / "text"
    options = replace(
        QUICK, kind="standalone", text=str(text), text_tokens=None, teacher="online", depth=1
    )
    output = distill(str(target), tmp_path / "alone", options)
    folder = ModelFolder.open(output)
    assert folder.config.target_layers is None
    assert not (tmp_path / "alone.work" / "states").exists()
    assert not (tmp_path / "alone.work" / "text").exists()
    entries = read_log(tmp_path / "alone.work" / "train" / "log.jsonl")
    acceptance = [entry["held_out"]["acceptance"][0] for entry in entries if "held_out" in entry]
    assert acceptance[-1] > acceptance[0]


def test_a_cached_and_an_online_teacher_say_the_same(
    target: Path, made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    text = made[0].with_name("small.work") / "text"
    losses = []
    for teacher in ("cached", "online"):
        options = replace(
            QUICK, text=str(text), text_tokens=None, teacher=teacher, prompts_per_kind=0
        )
        distill(str(target), tmp_path / teacher, options)
        entries = read_log(tmp_path / f"{teacher}.work" / "train" / "log.jsonl")
        losses.append([entry["loss"] for entry in entries if "loss" in entry])
    assert np.allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("kind", ["attached", "standalone"])
def test_text_of_the_students_own(
    target: Path, made: tuple[Path, list[str]], tmp_path: Path, kind: str
) -> None:
    text = made[0].with_name("small.work") / "text"
    options = replace(
        QUICK,
        kind=kind,
        text=str(text),
        text_tokens=None,
        on_policy=0.5,
        on_policy_tokens=3,
        depth=2 if kind == "attached" else 1,
        prompts_per_kind=0,
    )
    outputs = [distill(str(target), tmp_path / name, options) for name in ("first", "second")]
    assert same(trained(outputs[0]), trained(outputs[1]))
    if kind == "attached":
        assert not same(trained(outputs[0]), trained(made[0]))


@pytest.mark.parametrize("file", ["train/checkpoint.pt", "drafter.gguf"])
def test_another_runs_weights_to_begin_with(
    target: Path, made: tuple[Path, list[str]], tmp_path: Path, file: str
) -> None:
    """The first measurement is the last of the run that the weights are from."""
    work = made[0].with_name("small.work")
    options = replace(
        QUICK,
        text=str(work / "text"),
        text_tokens=None,
        initial=str(work / file),
        tokens=1,
        prompts_per_kind=0,
    )
    distill(str(target), tmp_path / "more", options)
    before, after = (
        [e["held_out"] for e in read_log(folder / "train" / "log.jsonl") if "held_out" in e]
        for folder in (work, tmp_path / "more.work")
    )
    if file == "drafter.gguf":
        assert after[0]["acceptance"][0] == pytest.approx(before[-1]["acceptance"][0], rel=0.02)
    else:
        assert after[0] == before[-1]
    assert after[0] != before[0]


def test_a_drafter_for_an_npu(target: Path, made: tuple[Path, list[str]], tmp_path: Path) -> None:
    text = made[0].with_name("small.work") / "text"
    options = replace(
        QUICK,
        kind="standalone",
        depth=1,
        text=str(text),
        text_tokens=None,
        tokens=1,
        layout="fp16",
        prompts_per_kind=0,
    )
    folder = ModelFolder.open(distill(str(target), tmp_path / "small", options))
    assert (folder.layout, folder.backend) == ("fp16", "qnn")
    assert "distillation" in folder.manifest


def test_begun_otherwise(target: Path, made: tuple[Path, list[str]]) -> None:
    output = made[0].with_name("small")
    with pytest.raises(InvalidInputError, match="was begun with tokens = 1200, not 1201"):
        distill(str(target), output, replace(QUICK, tokens=1201), replace=True)


def test_of_another_target(made: tuple[Path, list[str]], tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "target.gguf", layers=4, seed=5)
    with pytest.raises(InvalidInputError, match="was begun for another target"):
        distill(str(other), made[0], QUICK, replace=True)


def test_what_is_there_is_kept(target: Path, made: tuple[Path, list[str]]) -> None:
    with pytest.raises(ModelFolderError, match="already exists"):
        distill(str(target), made[0], QUICK)


def test_minutes_become_tokens_once(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "TEXT_SHARE", 0.01)
    options = replace(
        QUICK, tokens=None, text_tokens=None, minutes=1, conversations=400, prompts_per_kind=0
    )
    run = tmp_path / "small"
    said: list[str] = []

    def stop(stage: str, fraction: float) -> None:
        if stage == "training" and fraction > 0:
            raise Killed

    with pytest.raises(Killed):
        distill(str(target), run, options, say=said.append, progress=stop)
    plan = json.loads((tmp_path / "small.work" / "plan.json").read_text())
    speed = plan["measured"]["training_tokens_per_second"]
    seconds = min(36, max(18, 60 * 0.88 - plan["measured"]["seconds_before_training"]))
    assert plan["schedule"]["tokens"] == pytest.approx(seconds * speed, rel=0.01)
    assert plan["text_tokens"] > 0
    assert any(line.endswith(" s") for line in said if line.startswith("training on"))
    with pytest.raises(Killed):
        distill(str(target), run, options, say=said.append, progress=stop)
    assert json.loads((tmp_path / "small.work" / "plan.json").read_text()) == plan


def test_a_disk_that_is_too_full(
    target: Path,
    made: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = made[0].with_name("small.work") / "text"
    options = replace(QUICK, text=str(text), text_tokens=None)
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("specdec.distill.states.shutil.disk_usage", lambda path: usage)
    said: list[str] = []
    with pytest.raises(InvalidInputError, match="are free there; make room"):
        distill(str(target), tmp_path / "small", options, say=said.append)
    assert "GB in" in said[-1]
    assert not (tmp_path / "small").exists()


_SCRIPT = """
import sys
from pathlib import Path
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
distill(sys.argv[1], Path(sys.argv[2]), Options(**eval(sys.argv[3])))
"""


@pytest.mark.long
def test_killed_by_the_system_at_random_moments(
    target: Path, made: tuple[Path, list[str]], tmp_path: Path
) -> None:
    """SIGKILL, again and again, a little later each time, until the run gets through."""
    rng = np.random.default_rng(0)
    options = asdict(replace(QUICK, prompts_per_kind=0, save_seconds=0.05))
    command = [sys.executable, "-c", _SCRIPT, str(target), str(tmp_path / "small"), repr(options)]
    kills, most, code = 0, 2.0, -1
    while code != 0:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=rng.uniform(0.5 * most, most))
            code = process.returncode
            assert code == 0, said
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            most *= 1.1
            assert not (tmp_path / "small").exists()
    assert kills > 3
    assert same(trained(tmp_path / "small"), trained(made[0]))
