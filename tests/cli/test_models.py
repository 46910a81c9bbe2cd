"""``specdec pull``, ``convert`` and ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from specdec.cli.inspect import count_parameters
from specdec.cli.weights import Packed, describe_part, describe_weights, weight_rows
from specdec.convert import convert
from specdec.model_folder import ModelFolder
from tests.tiny_gguf import random_llama, write_tiny_gguf


def test_convert_prints_the_folder(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    outcome = cli("convert", tiny_gguf, "-o", folder, "--name", "small", "--layout", "nbits4")
    assert outcome.code == 0
    assert outcome.stdout == f"{folder}\n"
    assert "specdec: small: writing the graph" in outcome.stderr
    made = ModelFolder.open(folder)
    assert (made.name, made.layout) == ("small", "nbits4")


def test_convert_a_drafter(
    cli: Any, tiny_gguf: Path, tiny_drafter_gguf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "drafter"
    outcome = cli("convert", tiny_drafter_gguf, "-o", folder)
    assert outcome.code == 2
    assert "this is a drafter for 'tiny'" in outcome.stderr
    outcome = cli("convert", tiny_drafter_gguf, "-o", folder, "--target-source", tiny_gguf)
    assert outcome.code == 0
    assert ModelFolder.open(folder).role == "drafter"


def test_convert_replaces_only_when_told(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    assert cli("convert", tiny_gguf, "-o", folder).code == 0
    again = cli("convert", tiny_gguf, "-o", folder)
    assert again.code == 2
    assert "already exists" in again.stderr
    assert cli("convert", tiny_gguf, "-o", folder, "--replace").code == 0


def test_convert_of_damaged_checkpoints(cli: Any, tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    damaged = {
        "truncated.gguf": whole[: len(whole) // 2],
        "header.gguf": whole[:100],
        "magic.gguf": b"GGML" + whole[4:],
        "empty.gguf": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        outcome = cli("convert", tmp_path / name, "-o", tmp_path / "made")
        assert outcome.code == 2, name
        errors = outcome.stderr.splitlines()
        assert errors[-1].startswith("specdec: error: "), name
        assert name in errors[-1]
        assert sum("error" in line for line in errors) == 1, name
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "float7"], "no layout 'float7'"),
        (["-o", "/proc/nothing/made"], "cannot be written"),
    ],
)
def test_convert_errors(
    cli: Any, tiny_gguf: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = cli("convert", tiny_gguf, "-o", tmp_path / "made", *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr.splitlines()[-1]


def test_convert_of_a_checkpoint_without_a_tokenizer(cli: Any, tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "bare.gguf", tokenizer=False)
    outcome = cli("convert", source, "-o", tmp_path / "made")
    assert outcome.code == 2
    line = outcome.stderr.splitlines()[-1]
    assert line.startswith("specdec: error: ")
    assert "tokenizer" in line
    assert not (tmp_path / "made").exists()


def test_convert_of_nothing(cli: Any, tmp_path: Path) -> None:
    outcome = cli("convert", tmp_path / "nothing.gguf", "-o", tmp_path / "made")
    assert outcome.code == 2
    assert "nothing.gguf" in outcome.stderr.splitlines()[-1]


def test_pull_of_an_unknown_name(cli: Any) -> None:
    outcome = cli("pull", "smollm2-136m")
    assert outcome.code == 2
    assert "did you mean 'smollm2-135m'?" in outcome.error


def test_pull_without_a_name(cli: Any) -> None:
    assert "--list" in cli("pull").error


def test_pull_lists_known_models(cli: Any) -> None:
    lines = cli("pull", "--list").stdout.splitlines()
    assert any(line.startswith("smollm2-135m: ") for line in lines)
    assert any("[drafter for smollm2-135m]" in line for line in lines)


def test_pull_shows_progress_and_prints_the_folder(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(name: str, *, progress: Any, replace: bool) -> Path:
        for fraction in (0.0, 0.5, 1.0):
            progress("downloading", fraction)
        progress("writing the graph", 1.0)
        return tmp_path / f"{name}-{replace}"

    monkeypatch.setattr("specdec.hub.pull", pull)
    outcome = cli("pull", "some-model", "--replace")
    assert outcome.stdout == f"{tmp_path / 'some-model-True'}\n"
    assert outcome.stderr.splitlines() == [
        "specdec: some-model: downloading",
        "specdec: some-model: writing the graph",
    ]


def test_inspect_a_target(cli: Any, tiny_target: Path) -> None:
    outcome = cli("inspect", tiny_target)
    assert outcome.code == 0
    for words in ("tiny (target)", "llama", "2 layers", "300 tokens", "<|im_end|> (2)", "whole"):
        assert words in outcome.stdout


def test_inspect_a_drafter(cli: Any, tiny_drafter: Path) -> None:
    outcome = cli("inspect", tiny_drafter)
    assert "trimmed to 200 of 300 ids" in outcome.stdout
    assert "does not matter" in " ".join(outcome.stdout.split())


def test_inspect_as_json(cli: Any, tiny_target: Path) -> None:
    model = json.loads(cli("inspect", tiny_target, "--json", "--threads", 1).stdout)
    assert model["name"] == "tiny"
    assert model["layout"] == ModelFolder.open(tiny_target).layout
    assert model["head"] == {"trimmed": False, "ids": 300}
    # Half of so narrow a head keeps its 8 bits.
    mixed = {"bits": 7.5, "kinds": [{"code_bits": 6, "scales": "halves"}]}
    assert model["weights"]["embedding"] == model["weights"]["head"] == mixed
    assert model["weights"]["layers"]["kinds"] == [{"code_bits": 4, "scales": "bytes"}]
    assert model["tokenizer"]["stop_tokens"]["<|im_end|>"] == 2
    assert model["threads"] == 1
    assert isinstance(model["width_invariant"], bool)
    assert set(model["files"]) >= {"model.onnx", "tokenizer.json"}


@pytest.mark.parametrize(
    ("layout", "bits", "words"),
    [
        ("fused", None, "layers: 4 bits, a scale and an offset of 8 bits each"),
        ("fused-exact", 5.0, "layers: 4 bits, a scale and an offset of 16 bits each"),
        ("nbits8", None, None),
    ],
)
def test_inspect_tells_bits_with_scales(
    cli: Any, tiny_gguf: Path, tmp_path: Path, layout: str, bits: float | None, words: str | None
) -> None:
    folder = ModelFolder.open(convert(tiny_gguf, tmp_path / "model", layout=layout))
    described = describe_weights(folder)
    said = " ".join(cli("inspect", folder.path).stdout.split())
    if words is None:
        assert described is None
        assert "bits a weight" not in said
        return
    assert described is not None
    # By the bytes of the file, which holds a tied head once.
    graph = onnx.load(str(folder.graph_path)).graph
    packed = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    names = [n[:-6] for n in packed if n.startswith("layers.") and n.endswith(".codes")]
    size = 8 * sum(packed[f"{n}.codes"].nbytes + packed[f"{n}.scales"].nbytes for n in names)
    weights = sum(packed[f"{n}.codes"].size * 2 for n in names)
    assert described["layers"]["bits"] == pytest.approx(size / weights, abs=5e-4)
    assert bits in (None, described["layers"]["bits"])
    parts = ("logits.codes", "logits.fine", "logits.scales")
    head = sum(packed[name].nbytes for name in parts if name in packed)
    head_bits = 8 * head / (packed["logits.scales"].size * 32)
    assert described["head"]["bits"] == head_bits
    layers = f"{described['layers']['bits']:.4g}"
    assert f"embedding {head_bits:.4g}, layers {layers}, head {head_bits:.4g}" in said
    if layout == "fused":
        assert "6 bits, 8 for the inputs that count most, a scale of 16 bits for each 32" in said
    else:
        assert "embedding and head: 8 bits, a scale of 16 bits for each 32 weights" in said
    assert words in said


def test_a_part_of_two_kinds() -> None:
    four, eight = Packed([2, 3, 256], [2, 5, 16]), Packed([1, 3, 512], [1, 3, 16])
    described = describe_part([four, eight])
    size = 8 * (2 * 3 * 256 + 3 * 512) + 16 * 16 * (10 + 3)
    assert described["bits"] == round(size / (512 * 9), 3)
    rows = weight_rows({"layers": described})
    assert "32 weights, and a row's own two of 16; or 8 bits, a scale" in rows["held as"]


def test_inspect_warns_where_rows_depend_on_the_width(
    cli: Any, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec.model.Model.width_invariant", False)
    assert "NO, WARNING" in cli("inspect", tiny_target).stdout


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted(tmp_path: Path, tied: bool) -> None:
    sizes = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 128, "vocab": 300}
    folder = convert(write_tiny_gguf(tmp_path / "x.gguf", tied=tied, **sizes), tmp_path / "x")
    tensors = random_llama(**sizes, tied=tied, seed=0)
    expected = sum(tensor.size for tensor in tensors.values())
    assert count_parameters(ModelFolder.open(folder).config) == expected


def test_inspect_of_a_folder_without_a_model(cli: Any, tmp_path: Path) -> None:
    assert "has no model.json" in cli("inspect", tmp_path).error
