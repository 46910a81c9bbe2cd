"""Training through the rounding of an export."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.distill import rounding
from specdec.distill.llama import Layer, TorchLlama
from specdec.distill.students import AttachedStudent, StudentBatch
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = tmp_path_factory.mktemp("gguf") / "target.gguf"
    return open_source(write_tiny_gguf(path, layers=4), None)


def matrix(rows: int = 64, columns: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, columns, generator=generator)


def test_what_is_trained_with_is_what_is_exported() -> None:
    weight = matrix()
    weight[3, 32:64] = 0.25  # a block of one value
    weight[5] *= 1e-3
    found = rounding.straight_through(weight, "q4_1")
    assert np.array_equal(found.numpy(), rounding.rounded(weight.numpy(), "q4_1"))
    assert torch.equal(rounding.rounded_tensor(weight, "q4_1"), found)
    # 16 values between a block's least and greatest
    blocks = weight.reshape(64, -1, 32)
    steps = (blocks.amax(-1) - blocks.amin(-1)) / 15
    error = (found - weight).reshape(64, -1, 32).abs().amax(-1)
    assert (error <= 0.5 * steps + 2e-3 * blocks.abs().amax(-1)).all()
    assert error.max() > 0.3 * steps.max()


def test_eight_bits_are_not_simulated() -> None:
    weight = matrix()
    assert rounding.straight_through(weight, "q8_0") is weight


def test_the_gradient_passes_as_if_there_were_no_rounding() -> None:
    weight = matrix().requires_grad_()
    slope = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    (rounding.straight_through(weight, "q4_1") * slope).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, slope)


def test_vectors_are_kept() -> None:
    vector = np.linspace(-1, 1, 64, dtype=np.float32)
    assert rounding.rounded(vector, "q4_1") is vector


def test_a_student_computes_with_its_exported_weights(source: ModelSource) -> None:
    """Forward with 4 bits simulated equals that of the rounded weights, head and all."""
    student, given = (
        AttachedStudent.from_source(source, (0, 2), dtype=torch.float32) for _ in range(2)
    )
    generator = torch.Generator().manual_seed(3)  # the target itself has 4 bits
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    state = {
        name: rounding.rounded_tensor(value, "q4_1") if value.ndim == 2 else value
        for name, value in student.state_dict().items()
    }
    given.load_state_dict(state)
    ids = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(4))
    states = TorchLlama.from_source(source, dtype=torch.float32).states(ids, (0, 2))
    batch = StudentBatch(
        ids,
        states.hidden,
        [states.keys[layer] for layer in (0, 2)],
        [states.values[layer] for layer in (0, 2)],
    )
    whole = student(batch, 2)
    student.hold_as("q4_1")
    found, expected = student(batch, 2), given(batch, 2)
    for step in range(2):
        assert torch.equal(found[step], expected[step])
        assert not torch.allclose(found[step], whole[step], atol=1e-3)
    head = rounding.rounded_tensor(given.head(), "q4_1")
    assert torch.equal(student.head(), head)
    assert not torch.equal(given.head(), head)


@pytest.mark.parametrize("weights", rounding.WEIGHTS)
def test_a_layer_is_fused_as_it_is_held(source: ModelSource, weights: str) -> None:
    layer = Layer(source.config)
    layer.load(source, 0)
    fused = layer.fused(torch.float32, weights)
    parts = [rounding.straight_through(p, weights) for p in (layer.query, layer.key, layer.value)]
    assert torch.equal(fused.query_key_value, torch.cat(parts))
    assert torch.equal(fused.down, rounding.straight_through(layer.down, weights))
