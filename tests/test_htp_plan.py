"""The plan of a fixed-shape model: written, read back, and refused when damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specdec.errors import ModelFolderError
from specdec.htp_plan import PLAN_FILE, Encoding, HtpPlan, Part

U8, U16 = Encoding("uint8", 0.02, 128), Encoding("uint16", 0.001, 32000)
GRAPHS = {8: "a.onnx", 32: "b.onnx"}
PLAN = HtpPlan(
    past=1024,
    widths=(8, 32),
    x=U16,
    rotary=U16,
    key=(U8, U8, U8),
    value=(U8, U8, U8),
    logits=U16,
    mask_allowed=65535,
    mask_blocked=0,
    embedding_file="embedding.bin",
    rotary_file="rotary.bin",
    sink_file="sink.npz",
    parts=(
        Part("layers0", "layers", 0, 2, GRAPHS),
        Part("layers1", "layers", 2, 3, GRAPHS),
        Part("logits", "logits", 3, 3, GRAPHS),
        Part("best", "best", 3, 3, GRAPHS),
    ),
)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    PLAN.write(tmp_path)
    plan = HtpPlan.read(tmp_path / PLAN_FILE)
    assert plan == PLAN
    assert [part.name for part in plan.chain(8, "best")] == ["layers0", "layers1", "best"]
    assert [part.name for part in plan.chain(32, None)] == ["layers0", "layers1"]
    assert plan.has_head("best")


def remove(key: str) -> Callable[[Any], None]:
    return lambda plan: plan.pop(key)


def put(value: object, *path: str | int) -> Callable[[Any], None]:
    def change(plan: Any) -> None:
        for step in path[:-1]:
            plan = plan[step]
        plan[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "damage",
    [
        remove("past"),
        remove("parts"),
        put(0, "past"),
        put(1.5, "past"),
        put([], "widths"),
        put([32, 8], "widths"),
        put(["8", "32"], "widths"),
        put([8, 16], "widths"),
        put("int4", "x", "type"),
        put(0.0, "x", "scale"),
        put("large", "x", "scale"),
        put(1.5, "key", 0, "zero_point"),
        put(None, "key", 0),
        put([], "value"),
        put("tail", "parts", 0, "kind"),
        put(1, "parts", 0, "first_layer"),
        put(2, "parts", 1, "end_layer"),
        put("3", "parts", 1, "end_layer"),
        put({"eight": "a.onnx"}, "parts", 0, "graphs"),
        put(7, "embedding_file"),
        put("more", "surprise"),
        put([], "parts"),
    ],
)
def test_damaged_plans_give_one_line(tmp_path: Path, damage: Callable[[Any], None]) -> None:
    PLAN.write(tmp_path)
    file = tmp_path / PLAN_FILE
    document = json.loads(file.read_text())
    damage(document)
    file.write_text(json.dumps(document))
    with pytest.raises(ModelFolderError, match=r"htp\.json: .*convert the model again") as caught:
        HtpPlan.read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"past": 3}'])
def test_what_is_no_plan_gives_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / PLAN_FILE
    file.write_text(text)
    with pytest.raises(ModelFolderError, match="convert the model again") as caught:
        HtpPlan.read(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFolderError, match="cannot be read"):
        HtpPlan.read(tmp_path / "missing.json")
