"""Teacher and students against a plain forward pass, and against decoding step by step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from specdec.convert.checkpoint import ModelConfig, ModelSource
from specdec.convert.float_forward import FloatForward, LayerWeights, load_linear
from specdec.convert.source import open_source
from specdec.distill.llama import Rotary, TorchLlama, matrix_tensor
from specdec.distill.students import (
    AttachedStudent,
    StandaloneStudent,
    StudentBatch,
)
from specdec.errors import InvalidInputError
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_huggingface import write_tiny_huggingface

LAYERS = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", params=["gguf", "huggingface"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random target of 5 layers, 4 heads over 2 key/value heads."""
    folder = tmp_path_factory.mktemp("target")
    if request.param == "gguf":
        path = write_tiny_gguf(folder / "t.gguf", layers=LAYERS, quant="F32", embedding_quant="F32")
    else:
        path = write_tiny_huggingface(folder / "t", layers=LAYERS, tied=False)
    return open_source(path, None)


def texts(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(0))


def attached(source: ModelSource, layers: list[int]) -> AttachedStudent:
    """A student in float32 whose weights and bridges are not the target's."""
    student = AttachedStudent.from_source(source, layers, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def batch_of(source: ModelSource, layers: list[int], ids: Tensor) -> StudentBatch:
    states = TorchLlama.from_source(source, dtype=torch.float32).states(ids, layers)
    return StudentBatch(
        ids, states.hidden, [states.keys[j] for j in layers], [states.values[j] for j in layers]
    )


def test_the_teacher_computes_what_the_graphs_do(source: ModelSource) -> None:
    ids = texts()
    forward = FloatForward(source, ids.tolist())
    for layer in range(LAYERS):
        forward.layer(LayerWeights.load(source, layer), "", lambda name, rows: None)
    logits: list[np.ndarray] = []
    forward.head(
        source.vector("final_norm"),
        load_linear(source, "head"),
        lambda name, rows: logits.append(rows) if name == "logits" else None,
    )
    teacher = TorchLlama.from_source(source, dtype=torch.float32)
    ours = teacher(ids) @ teacher.head.T
    # The observer leaves position 0 out.
    expected = torch.from_numpy(np.stack(logits))
    torch.testing.assert_close(ours[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-3)


def test_residuals_and_keys_are_those_that_layers_read(source: ModelSource) -> None:
    ids, last = texts(), LAYERS - 1
    teacher = TorchLlama.from_source(source, dtype=torch.float32)
    states = teacher.states(ids, [0, last], [0, last, LAYERS])
    torch.testing.assert_close(states.residuals[0], teacher.embedding[ids])
    # A model of the last layer alone, run on the residual at its input, gives its output and keys.
    only = AttachedStudent.from_source(source, [last], dtype=torch.float32)
    assert states.keys[last].shape == (2, 2, 9, 16)
    norm = torch.nn.functional.rms_norm(
        states.residuals[LAYERS], (64,), only.final_norm, source.config.norm_eps
    )
    torch.testing.assert_close(norm, states.hidden, **CLOSE)


def test_a_standalone_student_of_all_layers_is_the_teacher(source: ModelSource) -> None:
    ids = texts()
    student = StandaloneStudent.from_source(source, range(LAYERS), dtype=torch.float32)
    teacher = TorchLlama.from_source(source, dtype=torch.float32)
    (hidden,) = student(StudentBatch(ids))
    torch.testing.assert_close(hidden, teacher(ids), **CLOSE)
    torch.testing.assert_close(student.head(), teacher.head)


def test_a_cut_student_has_the_layers_asked_for(source: ModelSource) -> None:
    ids = texts()
    student = StandaloneStudent.from_source(source, [0, 3], dtype=torch.float32)
    teacher = TorchLlama.from_source(source, [0, 3], dtype=torch.float32)
    torch.testing.assert_close(student(StudentBatch(ids))[0], teacher(ids), **CLOSE)
    assert student.config.layers == 2


def test_an_attached_student_of_all_layers_is_the_teacher(source: ModelSource) -> None:
    """Its first step, whose own K/V are those the target would compute."""
    ids, layers = texts(), list(range(LAYERS))
    student = AttachedStudent.from_source(source, layers, dtype=torch.float32)
    assert not student.bridges
    batch = batch_of(source, layers, ids)
    assert batch.hidden is not None
    torch.testing.assert_close(student(batch)[0], batch.hidden, **CLOSE)


def step_by_step(
    student: AttachedStudent, batch: StudentBatch, text: int, start: int, depth: int
) -> Iterator[Tensor]:
    """Decodes one round as the runtime does: one token at a time over a cache of columns.

    The round starts with the token at ``start``: the target's cache holds the columns before it,
    and the drafter appends its own.
    """
    config, eps = student.config, student.config.norm_eps
    assert batch.hidden is not None
    caches = [
        [side[text, :, :start] for side in pair]
        for pair in zip(batch.keys, batch.values, strict=True)
    ]
    hidden = batch.hidden[text, start - 1] if start else torch.zeros(config.hidden)

    def norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
        y = x / (x.square().mean() + eps).sqrt()
        return y if gain is None else y * gain

    def rotate(x: Tensor, position: int) -> Tensor:
        half = config.head_dim // 2
        angles = position * config.rope_theta ** -(torch.arange(half).double() / half)
        turn = torch.polar(torch.ones_like(angles), angles)
        first, second = x.double().chunk(2, -1)
        turned = torch.complex(first, second) * turn
        return torch.cat([turned.real, turned.imag], -1).float()

    for position in range(start, start + depth):
        feature = norm(hidden)
        x = student.embedding[batch.ids[text, position]]
        for j, layer in enumerate(student.layers):
            if str(j) in student.bridges:
                bridge = student.bridges[str(j)]
                x = bridge.scale * x + bridge.weight @ torch.cat([norm(x), feature]) + bridge.bias
            normed = norm(x, layer.attention_norm)
            query = rotate((layer.query @ normed).view(config.heads, -1), position)
            key = rotate((layer.key @ normed).view(config.kv_heads, -1), position)
            value = (layer.value @ normed).view(config.kv_heads, -1)
            keys, values = caches[j] = [
                torch.cat([side, new[:, None]], 1)
                for side, new in zip(caches[j], (key, value), strict=True)
            ]
            out = []
            for head in range(config.heads):
                group = head * config.kv_heads // config.heads
                scores = keys[group] @ query[head] / config.head_dim**0.5
                out.append(scores.softmax(0) @ values[group])
            x = x + layer.attention_output @ torch.cat(out)
            normed = norm(x, layer.ffn_norm)
            gate = torch.nn.functional.silu(layer.gate @ normed)
            x = x + layer.down @ (gate * (layer.up @ normed))
        hidden = norm(x, student.final_norm)
        yield hidden


@pytest.mark.parametrize("layers", [[0, 2, 4], [1, 2], [4]])
def test_unrolled_steps_equal_decoding_step_by_step(source: ModelSource, layers: list[int]) -> None:
    ids, depth = texts(), 3
    student, batch = attached(source, layers), batch_of(source, layers, ids)
    with torch.no_grad():
        steps = student(batch, depth)
        assert len(steps) == depth
        for text in range(2):
            for start in range(ids.shape[1] - depth + 1):
                for step, hidden in enumerate(step_by_step(student, batch, text, start, depth)):
                    torch.testing.assert_close(steps[step][text, start + step], hidden, **CLOSE)


def test_padding_changes_nothing_before_it(source: ModelSource) -> None:
    ids, layers = texts(), [0, 3]
    student, batch = attached(source, layers), batch_of(source, layers, ids)
    other = ids.clone()
    other[:, 6:] = 0
    with torch.no_grad():
        for one, two in zip(
            student(batch, 3), student(batch_of(source, layers, other), 3), strict=True
        ):
            torch.testing.assert_close(one[:, :6], two[:, :6])


def test_gradients_of_the_unrolled_steps_are_those_of_autograd(source: ModelSource) -> None:
    """Finite differences along a random direction, through all three steps."""
    ids, layers = texts(1, 7), [0, 2, 4]
    student, batch = attached(source, layers).double(), batch_of(source, layers, ids)
    student.dtype = torch.float64
    generator = torch.Generator().manual_seed(5)
    aim = [torch.randn(1, 7, 64, generator=generator) for _ in range(3)]
    for name, parameter in student.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

        def total() -> Tensor:
            steps = student(batch, 3)
            return sum(
                (s[:, 2:].double() * a[:, 2:]).sum() for s, a in zip(steps, aim, strict=True)
            )

        (slope,) = torch.autograd.grad(total(), parameter)
        with torch.no_grad():
            parameter += 1e-4 * direction
            above = total()
            parameter -= 2e-4 * direction
            below = total()
            parameter += 1e-4 * direction
        expected = ((above - below) / 2e-4).item()
        assert (slope * direction).sum().item() == pytest.approx(expected, rel=2e-2, abs=2e-2), name


def test_bfloat16_comes_close(source: ModelSource) -> None:
    ids, layers = texts(), [0, 2, 4]
    exact, batch = attached(source, layers), batch_of(source, layers, ids)
    close = AttachedStudent.from_source(source, layers)
    close.load_state_dict(exact.state_dict())
    with torch.no_grad():
        for one, two in zip(exact(batch, 2), close(batch, 2), strict=True):
            assert torch.nn.functional.cosine_similarity(one, two, dim=-1).min() > 0.995


def test_state_holds_what_is_trained_under_the_checkpoints_names(source: ModelSource) -> None:
    student = AttachedStudent.from_source(source, [0, 3])
    names = set(student.state_dict())
    assert student.config.target_layers == (0, 3)
    assert {"layers.1.query", "bridges.1.weight", "bridges.1.scale", "final_norm"} <= names
    assert not {"embedding", "head_rows"} & names
    torch.testing.assert_close(student.layers[1].key, matrix_tensor(source, "layers.3.key"))


def test_a_trimmed_head_takes_the_targets_rows(source: ModelSource) -> None:
    ids = torch.tensor([2, 5, 299])
    student = AttachedStudent.from_source(source, [0, 3], head_ids=ids, dtype=torch.float32)
    torch.testing.assert_close(student.head(), matrix_tensor(source, "head")[ids])
    torch.testing.assert_close(matrix_tensor(source, "head", rows=ids), student.head())
    with pytest.raises(InvalidInputError, match="rows 0 to 299"):
        matrix_tensor(source, "head", rows=torch.tensor([300]))


def test_an_embedding_of_its_own_is_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    config, rotary = tiny_config()
    embedding = torch.randn(config.vocab, config.hidden, generator=generator)
    student = StandaloneStudent(
        config, embedding, None, rotary, head_ids=torch.tensor([1, 4]), own_embedding=True
    )
    assert student.config.tied_head
    assert student.head().shape == (2, config.hidden)
    (student(StudentBatch(torch.tensor([[3, 4]])))[0] @ student.head().float().T).sum().backward()
    grad = dict(student.named_parameters())["embedding"].grad
    assert grad is not None
    assert (grad.abs().sum(-1) > 0).nonzero().flatten().tolist() == [1, 3, 4]


def tiny_config() -> tuple[ModelConfig, Rotary]:
    config = ModelConfig(1, 32, 2, 2, 16, 64, 10, 64, 10000.0, 1e-5, False)
    return config, Rotary(config)


def test_what_a_student_cannot_do_is_refused(source: ModelSource) -> None:
    with pytest.raises(InvalidInputError, match="layers 0 to 4"):
        StandaloneStudent.from_source(source, [5])
    with pytest.raises(InvalidInputError, match="ascending"):
        AttachedStudent.from_source(source, [2, 1])
    standalone = StandaloneStudent.from_source(source, [0])
    with pytest.raises(InvalidInputError, match="depth must be 1"):
        standalone(StudentBatch(texts()), 2)
    student = AttachedStudent.from_source(source, [0, 2])
    with pytest.raises(InvalidInputError, match="hidden states"):
        student(StudentBatch(texts()))
