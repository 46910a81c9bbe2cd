"""First weights: cut, drawn, projected, and bridges fitted by least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.distill.architecture import plan_drafter
from specdec.distill.initial import fit_bridges, make_student, project_rows
from specdec.distill.llama import TorchLlama, matrix_tensor
from specdec.distill.students import AttachedStudent, StandaloneStudent, StudentBatch
from specdec.errors import InvalidInputError
from tests.tiny_gguf import write_tiny_gguf

LAYERS = [0, 2, 4]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    path = tmp_path_factory.mktemp("target") / "t.gguf"
    return open_source(write_tiny_gguf(path, layers=5, quant="F32", embedding_quant="F32"), None)


def texts(batches: int = 4, length: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(3, 300, (8, length), generator=generator), torch.full((8,), length))
        for _ in range(batches)
    ]


def test_fitted_bridges_are_the_least_squares_solution(source: ModelSource) -> None:
    """Against torch's own least squares on all rows at once, with one text cut short."""
    teacher = TorchLlama.from_source(source, dtype=torch.float32)
    student = AttachedStudent.from_source(source, LAYERS, dtype=torch.float32)
    given = texts()
    given[0][1][3] = 17
    explained = fit_bridges(student, teacher, given, ridge=0, skip=4)
    assert sorted(explained) == [1, 2]
    xs, ys, zs = [], [], []
    for ids, lengths in given:
        states = teacher.states(ids, residuals=[3, 4])
        for row, length in enumerate(lengths.tolist()):
            for t in range(4, length):
                x, y = (states.residuals[layer][row, t].double() for layer in (3, 4))
                f = states.hidden[row, t - 1].double()
                xs.append(x)
                ys.append(y)
                zs.append(torch.cat([norm(x), norm(f), torch.ones(1).double()]))
    x, y, z = torch.stack(xs), torch.stack(ys), torch.stack(zs)
    scale = (x * y).sum(0) / (x * x).sum(0)
    weights = torch.linalg.lstsq(z, y - scale * x).solution
    bridge = student.bridges["2"]
    torch.testing.assert_close(bridge.scale.double(), scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bridge.weight.double(), weights[:-1].T, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(bridge.bias.double(), weights[-1], rtol=1e-2, atol=1e-3)
    error = (y - scale * x - z @ weights).square().sum()
    spread = (y - y.mean(0)).square().sum()
    assert explained[2] == pytest.approx(1 - (error / spread).item(), abs=1e-4)
    assert 0.3 < explained[2] < 1


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-5).sqrt()


def test_fitted_bridges_bring_the_student_closer(source: ModelSource) -> None:
    teacher = TorchLlama.from_source(source, dtype=torch.float32)
    student = AttachedStudent.from_source(source, LAYERS, dtype=torch.float32)
    ids = texts(1)[0][0]
    states = teacher.states(ids, LAYERS)
    batch = StudentBatch(
        ids, states.hidden, [states.keys[j] for j in LAYERS], [states.values[j] for j in LAYERS]
    )

    def error() -> float:
        with torch.no_grad():
            return (student(batch)[0] - states.hidden)[:, 4:].square().mean().item()

    before = error()
    fit_bridges(student, teacher, texts())
    assert error() < 0.8 * before


def test_too_little_text_for_a_bridge_is_refused(source: ModelSource) -> None:
    student = AttachedStudent.from_source(source, LAYERS)
    with pytest.raises(InvalidInputError, match="positions to fit a bridge of 128 inputs"):
        fit_bridges(
            student, TorchLlama.from_source(source), [(texts()[0][0][:2], torch.tensor([9, 9]))]
        )


def test_the_kind_of_a_plan_is_made(source: ModelSource) -> None:
    attached = make_student(plan_drafter(source.config, layers=LAYERS), source)
    assert isinstance(attached, AttachedStudent)
    assert attached.target_layers == tuple(LAYERS)
    ids = torch.tensor([1, 5, 8])
    plan = plan_drafter(source.config, kind="standalone", layers=[0, 4], head_size=3)
    cut = make_student(plan, source, head_ids=ids)
    assert isinstance(cut, StandaloneStudent)
    torch.testing.assert_close(cut.layers[1].up, matrix_tensor(source, "layers.4.up"))
    assert cut.head().shape == (3, 64)
    with pytest.raises(InvalidInputError, match="300 ids for a head of 3"):
        make_student(plan, source)
    with pytest.raises(InvalidInputError, match="no origin"):
        make_student(plan, source, head_ids=ids, origin="noise")


def test_parameters_are_those_that_the_plan_counts(source: ModelSource) -> None:
    for plan in (
        plan_drafter(source.config, layers=LAYERS),
        plan_drafter(source.config, kind="standalone", layers=[0, 4]),
        plan_drafter(source.config, kind="standalone", size=20_000),
    ):
        student = make_student(plan, source)
        assert sum(p.numel() for p in student.parameters()) == plan.parameters


def test_random_layers_follow_the_seed(source: ModelSource) -> None:
    plan = plan_drafter(source.config, layers=LAYERS)
    one, same, other = (
        make_student(plan, source, origin="random", seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.query"], other["layers.0.query"])
    assert one["layers.0.gate"].std().item() == pytest.approx(0.02, rel=0.1)
    assert one["layers.0.down"].std().item() == pytest.approx(0.02 / 6**0.5, rel=0.1)
    assert torch.equal(one["layers.2.ffn_norm"], torch.ones(64))


def test_a_narrower_student_starts_from_the_projected_embedding(source: ModelSource) -> None:
    plan = plan_drafter(source.config, kind="standalone", size=20_000)
    assert plan.config.hidden == 32
    student = make_student(plan, source)
    assert isinstance(student, StandaloneStudent)
    rows = matrix_tensor(source, "embedding")
    best = rows.double() @ torch.linalg.svd(rows.double()).Vh[:32].T
    ours = student.embedding.detach().double()
    # Signs of directions are free, a common scale is ours: inner products of rows tell.
    ratio = (ours @ ours.T) / (best @ best.T)
    assert ratio.std().item() < 1e-3 * ratio.mean().item()
    assert ours.square().mean().item() == pytest.approx(rows.square().mean().item(), rel=1e-4)
    (hidden,) = student(StudentBatch(torch.tensor([[3, 4, 5]])))
    assert hidden.shape == (1, 3, 32)


def test_frequent_rows_count_for_more_in_a_projection() -> None:
    rows = torch.eye(4)
    kept = project_rows(rows, 2, torch.tensor([1.0, 5.0, 1.0, 3.0]))
    assert kept.square().sum(1).tolist() == pytest.approx([0, 1, 0, 1], abs=1e-6)
    with pytest.raises(InvalidInputError, match="directions"):
        project_rows(rows, 5)


def test_layers_that_follow_each_other_need_no_bridge(source: ModelSource) -> None:
    student = AttachedStudent.from_source(source, [0, 1, 2])
    assert fit_bridges(student, TorchLlama.from_source(source), iter(())) == {}
