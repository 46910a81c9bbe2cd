"""Folders of fixed-shape graphs that do not fit together: one line says what and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from specdec import Model, ModelFolderError
from specdec.model_folder import MANIFEST, write_manifest


@pytest.fixture
def folder(fixed_target: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(fixed_target, tmp_path / "copy"))


def refused(folder: Path, *names: str) -> None:
    """The folder with a manifest that fits its files is refused in one line."""
    manifest = json.loads((folder / MANIFEST).read_text())
    write_manifest(folder, manifest)
    with pytest.raises(ModelFolderError) as caught:
        Model.load(folder, backend="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message, message


def change_plan(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    plan = json.loads((folder / "htp.json").read_text())
    change(plan)
    (folder / "htp.json").write_text(json.dumps(plan))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda plan: plan.update(past=32), ("htp.json", "context of 32", "64")),
        (lambda plan: plan.update(widths=[8, 4]), ("htp.json", "widths")),
        (lambda plan: plan.update(widths=[0, 8]), ("htp.json", "widths")),
        (lambda plan: plan.pop("rotary"), ("htp.json", "rotary")),
        (lambda plan: plan.update(more=1), ("htp.json", "more")),
        (lambda plan: plan["parts"][0].update(end_layer=1), ("htp.json", "layers")),
        (lambda plan: plan["parts"].pop(1), ("htp.json", "no graph that gives logits")),
        (lambda plan: plan.update(sink_file="no.npz"), ("htp.json", "no.npz")),
        (lambda plan: plan["x"].update(type="int4"), ("htp.json", "int4")),
    ],
)
def test_a_plan_that_does_not_fit(
    folder: Path, change: Callable[[dict[str, Any]], object], names: tuple[str, ...]
) -> None:
    change_plan(folder, change)
    refused(folder, *names)


def test_a_plan_that_is_no_json(folder: Path) -> None:
    (folder / "htp.json").write_text("{")
    refused(folder, "htp.json", "again")


def test_a_graph_of_another_shape(folder: Path) -> None:
    shutil.copy(folder / "layers0.w8.onnx", folder / "layers0.w4.onnx")
    refused(folder, "layers0.w4.onnx", "[1, 8, 64]", "[1, 4, 64]")


def test_a_graph_with_another_output(folder: Path) -> None:
    shutil.copy(folder / "best.w8.onnx", folder / "logits.w8.onnx")
    refused(folder, "logits.w8.onnx", "'logits'")


def test_a_graph_of_floats(folder: Path) -> None:
    file = folder / "best.w8.onnx"
    model = onnx.load(file, load_external_data=False)
    cast = onnx.helper.make_node("Cast", ["ids"], ["best"], to=onnx.TensorProto.INT64)
    last = next(node for node in model.graph.node if "best" in node.output)
    last.output[list(last.output).index("best")] = "ids"
    model.graph.node.append(cast)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, file)
    refused(folder, "best.w8.onnx", "int64")


def test_a_graph_that_does_not_load(folder: Path) -> None:
    (folder / "logits.w4.onnx").write_bytes(b"no graph")
    refused(folder, "logits.w4.onnx", "again")


@pytest.mark.parametrize(
    "change",
    [
        lambda sink: sink.update(token=np.int32(300)),
        lambda sink: sink.update(key=sink["key"][:1]),
        lambda sink: sink.update(value=sink["value"].astype(np.uint16)),
        lambda sink: sink.update(logits=sink["logits"].astype(np.float64)),
        lambda sink: sink.pop("logits"),
    ],
)
def test_a_sink_that_does_not_fit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with np.load(folder / "sink.npz") as file:
        sink = dict(file)
    change(sink)
    np.savez(folder / "sink.npz", **sink)
    refused(folder, "sink.npz", "again")


@pytest.mark.parametrize("name", ["embedding.bin", "rotary.bin"])
def test_a_table_that_is_too_short(folder: Path, name: str) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[:-2])
    refused(folder, name, "again")


def test_a_folder_for_an_unknown_backend(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["graph"]["backend"] = "abacus"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    refused(folder, "'abacus'")
