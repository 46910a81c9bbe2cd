"""Tiny texts and training runs for the tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.distill.architecture import frequent_ids
from specdec.distill.corpus import Corpus, list_shards
from specdec.distill.held_out import HeldOut
from specdec.distill.llama import TorchLlama
from specdec.distill.optim import Optimizer
from specdec.distill.states import CachedTeacher, StateShape, Teacher, write_states
from specdec.distill.students import AttachedStudent, StandaloneStudent, Student
from specdec.distill.train import Schedule, Trainer
from specdec.distill.world import World

EVERY = 6
LAYERS = (0, 2)  # of the target's four
HEAD = 200


def write_shard(
    folder: Path, name: str, *, seed: int, conversations: int = 24, vocab: int = 300
) -> Path:
    """Random conversations: 4 tokens of a template, then a user's turn and an answer."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(12, 30, conversations)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    # Few ids, so that a head of the most frequent ones covers most of it.
    tokens = rng.zipf(1.3, offsets[-1]).clip(1, vocab) - 1
    role = np.full(offsets[-1], 2, np.uint8)
    for start, end in pairwise(offsets):
        role[start : start + 3] = 0
        role[start + 3 : start + 8] = 1
        role[end - 1] = 0
    temperature = np.where(rng.random(conversations) < 0.4, 0.0, 1.0).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    np.savez(
        path,
        offsets=offsets,
        tokens=tokens.astype(np.uint32),
        role=role,
        temperature=temperature,
        kind=np.full(conversations, "chat"),
    )
    return path


class Setting:
    """A target, a text and its states on disk; makes trainers that begin or go on in a folder."""

    def __init__(self, target: Path, folder: Path, *, shards: int = 2) -> None:
        self.source: ModelSource = open_source(target, None)
        self.model = TorchLlama.from_source(self.source, dtype=torch.float32)
        self.text, self.states = folder / "text", folder / "states"
        for shard in range(shards):
            write_shard(self.text, f"shard-{shard:04}", seed=shard)
        config = self.source.config
        self.shape = StateShape("a target", config.hidden, LAYERS, config.kv_heads, config.head_dim)
        self.teacher: Teacher = CachedTeacher(self.states, self.shape)
        ids = frequent_ids(self.corpus().frequencies(config.vocab), HEAD)
        self.head_ids = torch.from_numpy(ids)

    def corpus(self, names: Sequence[str] | None = None) -> Corpus:
        names = list_shards(self.text) if names is None else names
        write_states(self.text, self.states, names, self.model, self.shape)
        return Corpus.read(self.text, names, every=EVERY)

    def student(self, kind: str = "attached") -> Student:
        make: Callable[..., Student] = (
            AttachedStudent.from_source if kind == "attached" else StandaloneStudent.from_source
        )
        return make(self.source, LAYERS, head_ids=self.head_ids, dtype=torch.float32)

    def trainer(
        self, folder: Path, schedule: Schedule, *, kind: str = "attached", **options: object
    ) -> Trainer:
        student = self.student(kind)
        assert isinstance(student, torch.nn.Module)
        optimizer = Optimizer(student, schedule.optimizer)
        settings: dict[str, object] = {
            "plan": "tiny",
            "teacher": self.teacher,
            "teacher_head": self.model.head[self.head_ids],
            "corpus": self.corpus,
            "held_out": HeldOut(
                self.corpus().held_out, self.teacher, self.model.head, dtype=torch.float32
            ),
            "folder": folder,
            "world": World(),
        } | options
        return Trainer(student, optimizer, schedule, **settings)  # type: ignore[arg-type]
