"""A student's weights on disk are read back as what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec import Generator, Model, SamplingParams
from specdec.convert import convert
from specdec.convert.source import open_source
from specdec.distill import export, rounding
from specdec.distill.llama import TorchLlama
from specdec.distill.students import AttachedStudent, StandaloneStudent
from specdec.errors import CheckpointError, InvalidInputError
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_huggingface import write_tiny_huggingface

LAYERS = (0, 2)
HEAD_IDS = np.arange(0, 300, 2)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "target.gguf", layers=4)


def shaken(student: torch.nn.Module) -> None:
    """Weights that are nobody else's."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", [AttachedStudent, StandaloneStudent])
@pytest.mark.parametrize(("held_as", "error"), [("q8_0", 1 / 100), ("q4_1", 1 / 12)])
def test_a_drafter_is_read_back(
    target: Path,
    tmp_path: Path,
    kind: type[AttachedStudent] | type[StandaloneStudent],
    held_as: str,
    error: float,
) -> None:
    source = open_source(target, None)
    student = kind.from_source(source, LAYERS)
    shaken(student)
    weights = export.weights_of(student.state_dict())
    layers = LAYERS if kind is AttachedStudent else None
    shape = replace(source.config, layers=len(LAYERS), target_layers=layers)
    path = tmp_path / "drafter.gguf"
    export.write_gguf(
        path,
        shape,
        weights,
        name="small",
        target="target",
        head_ids=HEAD_IDS,
        held_as=held_as,
    )
    read = open_source(path, target)
    assert read.is_drafter
    assert read.config == shape
    assert np.array_equal(read.head_ids, HEAD_IDS)
    for name, values in export.as_exported(weights, held_as).items():
        if values.ndim == 2:
            assert np.array_equal(read.matrix(name).dequantise(), values), name
            assert np.abs(values - weights[name]).max() < np.abs(weights[name]).max() * error
        else:
            assert np.array_equal(read.vector(name), values), name
    head = source.matrix("embedding").take_rows(HEAD_IDS).dequantise()
    expected = rounding.rounded(head, held_as) if held_as == "q4_1" else head
    assert np.array_equal(read.matrix("head").dequantise(), expected)
    assert np.array_equal(
        read.matrix("embedding").dequantise(), source.matrix("embedding").dequantise()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["drafter.gguf"]


def test_a_head_of_other_bits_is_refused(target: Path, tmp_path: Path) -> None:
    source = open_source(target, None)
    student = StandaloneStudent.from_source(source, LAYERS)
    path = tmp_path / "drafter.gguf"
    export.write_gguf(
        path,
        replace(source.config, layers=len(LAYERS)),
        export.weights_of(student.state_dict()),
        name="small",
        target="target",
        head_ids=None,
        held_as="q4_1",
    )
    key = b"specdec.head_bits" + (4).to_bytes(4, "little")  # and the type of a whole number
    data = path.read_bytes()
    assert data.count(key) == 1
    at = data.index(key) + len(key)
    path.write_bytes(data[:at] + (5).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointError, match=r"'specdec.head_bits' is 5, expected 4"):
        open_source(path, target)


def test_weights_and_back(target: Path) -> None:
    student = AttachedStudent.from_source(open_source(target, None), LAYERS)
    shaken(student)
    state = student.state_dict()
    again = export.state_of(export.weights_of(state))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("form", ["gguf", "huggingface"])
def test_a_drafter_with_its_own_embedding(target: Path, tmp_path: Path, form: str) -> None:
    """A whole model of another width, with the target's tokenizer, that drafts for it."""
    if form == "huggingface":
        target = write_tiny_huggingface(tmp_path / "target", layers=2)
    source = open_source(target, None)
    shape = replace(source.config, layers=1, hidden=32, heads=2, kv_heads=2, ffn=64)
    shape = replace(shape, tied_head=False, head_dim=16)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(shape.vocab, shape.hidden, generator=rng)
    student = StandaloneStudent(
        shape, rows, rows.flip(0), TorchLlama.from_source(source).rotary, own_embedding=True
    )
    shaken(student)
    weights = export.weights_of(student.state_dict())
    folder = tmp_path / "drafter"
    folder.mkdir()  # what is there is replaced
    given = target if target.is_dir() else None
    export.write_huggingface(folder, shape, weights, target=source, target_folder=given)
    read = open_source(folder, None)
    assert read.config == shape
    close = read.matrix("layers.0.query").dequantise()
    assert np.allclose(close, weights["layers.0.query"], rtol=1e-2)
    assert np.allclose(read.matrix("head").dequantise(), weights["head"], rtol=1e-2)
    models = [convert(path, tmp_path / name) for path, name in ((target, "t"), (folder, "d"))]
    pair = Generator(*map(Model.load, models))
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    alone = Generator(Model.load(models[0]))
    assert pair.generate("the dog", greedy).tokens == alone.generate("the dog", greedy).tokens


def test_a_place_that_cannot_be_written(target: Path, tmp_path: Path) -> None:
    source = open_source(target, None)
    student = StandaloneStudent.from_source(source, LAYERS)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        export.write_gguf(
            tmp_path / "file" / "drafter.gguf",
            replace(source.config, layers=2),
            export.weights_of(student.state_dict()),
            name="small",
            target="target",
            head_ids=None,
        )
