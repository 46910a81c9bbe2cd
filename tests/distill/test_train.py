"""The trainer: what it learns, and that being killed changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specdec.distill import checkpoint
from specdec.distill.checkpoint import Position
from specdec.distill.optim import OptimizerSettings
from specdec.distill.progress import read_log
from specdec.distill.train import CHECKPOINT, LOG, Schedule, Trainer
from specdec.errors import InvalidInputError
from tests.distill.runs import Setting, write_shard
from tests.tiny_gguf import write_tiny_gguf

SCHEDULE = Schedule(
    tokens=1800,
    batch_tokens=150,
    evaluate_tokens=500,
    drafts=2,
    optimizer=OptimizerSettings(learning_rate=3e-3, warmup_steps=3),
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "target.gguf", layers=4)


@pytest.fixture(scope="module")
def setting(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(target, tmp_path_factory.mktemp("run"))


class Killed(Exception):
    """Stands for what ends a process."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(folder / CHECKPOINT, plan=None)
    assert state is not None
    found: dict[str, torch.Tensor] = state["model"]
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def until_killed(trainer: Trainer, step: int) -> None:
    """Train, and end without a word before ``step``."""

    def kill(position: Position) -> bool:
        if position.step >= step:
            raise Killed
        return False

    with pytest.raises(Killed):
        trainer.run(stop=kill)


@pytest.mark.parametrize("kind", ["attached", "standalone"])
def test_learns_what_the_target_says(setting: Setting, tmp_path: Path, kind: str) -> None:
    trainer = setting.trainer(tmp_path, SCHEDULE, kind=kind)
    before = trainer.measure()
    trainer.run()
    after = trainer.measure()
    assert before is not None
    assert after is not None
    assert len(after.acceptance) == 2
    assert after.acceptance[0] > before.acceptance[0] + 0.02
    entries = read_log(tmp_path / LOG)
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < losses[0]
    measured = [entry["held_out"] for entry in entries if "held_out" in entry]
    assert measured[0] == before.as_dict()
    assert measured[-1] == after.as_dict()
    assert entries[-1]["tokens"] >= SCHEDULE.tokens


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
@pytest.mark.parametrize("kills", [(1,), (2, 5, 6), (3, 4, 9, 12)])
def test_killed_and_gone_on_ends_with_the_same_weights(
    setting: Setting, tmp_path: Path, kills: tuple[int, ...], save_seconds: float
) -> None:
    undisturbed = setting.trainer(tmp_path / "whole", SCHEDULE)
    undisturbed.run()
    assert undisturbed.position.step > max(kills)
    for step in kills:
        until_killed(setting.trainer(tmp_path / "cut", SCHEDULE, save_seconds=save_seconds), step)
    last = setting.trainer(tmp_path / "cut", SCHEDULE, save_seconds=save_seconds)
    assert last.position.step == (kills[-1] if save_seconds == 0 else 0)
    last.run()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    logs = []
    for folder in ("whole", "cut"):
        logs.append(
            [
                {k: v for k, v in e.items() if k not in ("time", "seconds", "tokens_per_second")}
                for e in read_log(tmp_path / folder / LOG)
            ]
        )
    assert logs[0] == logs[1]


def test_another_seed_gives_other_weights(setting: Setting, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        schedule = Schedule(tokens=600, batch_tokens=150, seed=seed)
        setting.trainer(tmp_path / name, schedule).run()
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_new_text_is_taken_in_between_epochs_and_met_again(target: Path, tmp_path: Path) -> None:
    """The text that an epoch began with stays the text of that epoch."""
    setting = Setting(target, tmp_path, shards=1)
    first_epoch = setting.corpus().tokens
    schedule = Schedule(tokens=3 * first_epoch, batch_tokens=150, evaluate_tokens=10**9)
    until_killed(setting.trainer(tmp_path / "cut", schedule, save_seconds=1e9), 2)
    write_shard(setting.text, "shard-0001", seed=1)
    trainer = setting.trainer(tmp_path / "cut", schedule, save_seconds=1e9)
    trainer.run(stop=lambda position: position.epoch == 1 and position.batch == 1)
    write_shard(setting.text, "shard-0002", seed=2)
    until_killed(
        setting.trainer(tmp_path / "cut", schedule, save_seconds=1e9), trainer.position.step + 2
    )
    last = setting.trainer(tmp_path / "cut", schedule)
    last.run()
    assert last.position.epoch == 1  # two shards: longer than what was left
    again = setting.trainer(tmp_path / "again", schedule)
    (tmp_path / "again").mkdir(exist_ok=True)
    epochs = (tmp_path / "cut" / "epochs.json").read_text()
    assert epochs == '[["shard-0000"], ["shard-0000", "shard-0001"]]\n'
    (tmp_path / "again" / "epochs.json").write_text(epochs)
    again.run()
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "again"))


def test_accumulated_batches_are_one_large_batch(setting: Setting, tmp_path: Path) -> None:
    """The gradient of two batches in one step is that of both together."""
    gradients = []
    for name, schedule in (
        ("large", Schedule(tokens=10**6, batch_tokens=10**6)),
        ("small", Schedule(tokens=10**6, batch_tokens=120, accumulate=1000)),
    ):
        trainer = setting.trainer(tmp_path / name, schedule)
        found: list[torch.Tensor] = []
        trainer._world = _Spy(found)
        trainer.run(stop=lambda position: position.step == 1)
        gradients.append(torch.cat(found))
        assert trainer.position.tokens == setting.corpus().tokens
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


class _Spy:
    """A world of one that keeps the gradients it is shown."""

    rank, size, first = 0, 1, True

    def __init__(self, found: list[torch.Tensor]) -> None:
        self._found = found

    def agree(self, value: object) -> object:
        return value

    def barrier(self) -> None: ...

    def sum(self, values: list[float]) -> list[float]:
        return list(values)

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        self._found += [p.grad.flatten().clone() for p in parameters if p.grad is not None]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_another_kind(path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, path)


@pytest.mark.parametrize("harm", [damaged, emptied, of_another_kind])
def test_a_checkpoint_that_cannot_be_used(
    setting: Setting, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    setting.trainer(tmp_path, SCHEDULE).run(stop=lambda position: position.step == 1)
    harm(tmp_path / CHECKPOINT)
    with pytest.raises(InvalidInputError, match=r"checkpoint\.pt: not a readable checkpoint"):
        setting.trainer(tmp_path, SCHEDULE)


def test_a_checkpoint_of_another_plan(setting: Setting, tmp_path: Path) -> None:
    setting.trainer(tmp_path, SCHEDULE).run(stop=lambda position: position.step == 1)
    with pytest.raises(InvalidInputError, match="belongs to another plan"):
        setting.trainer(tmp_path, SCHEDULE, plan="another")


def test_a_rate_that_blows_up_is_said(setting: Setting, tmp_path: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=1e30, warmup_steps=0)
    schedule = Schedule(tokens=10**6, batch_tokens=150, optimizer=optimizer)
    with pytest.raises(InvalidInputError, match="train with a lower rate"):
        setting.trainer(tmp_path, schedule).run()
