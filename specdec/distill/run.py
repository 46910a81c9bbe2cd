"""One run of ``specdec distill``: its stages over one folder; each goes on where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from specdec.distill import build, checkpoint, measure
from specdec.distill.architecture import Plan as DrafterPlan
from specdec.distill.architecture import coverage
from specdec.distill.corpus import Corpus, list_shards, manifest_sha256
from specdec.distill.finish import Made, finish
from specdec.distill.held_out import HeldOut
from specdec.distill.llama import TorchLlama
from specdec.distill.on_policy import MixedTeacher, OnPolicy
from specdec.distill.optim import Optimizer
from specdec.distill.options import Options, check_same
from specdec.distill.plan import RunPlan, schedule_of
from specdec.distill.states import (
    CachedTeacher,
    OnlineTeacher,
    StateShape,
    Teacher,
    check_disk,
    disk_need,
    missing_states,
    write_states,
)
from specdec.distill.target import TargetModel
from specdec.distill.train import CHECKPOINT, Trainer
from specdec.distill.world import World
from specdec.distill.write import WriteOptions, WriteProgress, write_text
from specdec.errors import InvalidInputError

Progress = Callable[[str, float], None]
Say = Callable[[str], None]

HEAD_IDS = "head_ids.npy"
INITIAL = "initial.pt"


class Run:
    """One output's stages."""

    def __init__(
        self,
        target: TargetModel,
        work: Path,
        options: Options,
        world: World,
        progress: Progress,
        say: Say,
    ) -> None:
        self.target = target
        self.work = work
        self.options = options
        self._world = world
        self._progress = progress
        self._say = say
        self._device = build.device_of(options)
        self._dtype = build.dtype_of(options)
        self._started = time.monotonic()
        self._model: TorchLlama | None = None
        self._held_out: HeldOut | None = None
        self.text = Path(options.text) if options.text else work / "text"
        self.states = work / "states"
        self.plan = self._begin()

    @property
    def model(self) -> TorchLlama:
        """The target's network."""
        if self._model is None:
            self._progress("loading the target", 0.0)
            self._model = TorchLlama.from_source(
                self.target.source, dtype=self._dtype, device=self._device
            )
        return self._model

    def prepare(self) -> None:
        """Text and plan; the other processes wait for the first."""
        if self._world.first:
            build.architecture(self.target, self.options)  # what cannot be is said at once
            if self.options.initial is not None:
                build.initial_weights(Path(self.options.initial), self.target)
            self._write_text()
            self._decide()
        self._world.barrier()
        found = RunPlan.read(self.work)
        if found is None:
            raise InvalidInputError(f"{self.work}: its plan is gone; start again")
        self.plan = found

    def train(self) -> None:
        """Train until the budget is spent."""
        self.trainer(self.work / "train", self.student()).run()

    def finish(self, output: Path, *, replace: bool) -> None:
        """Export, measure, and put the drafter in place."""
        state = checkpoint.load(self.work / "train" / CHECKPOINT, plan=self._digest())
        if state is None:
            raise InvalidInputError(f"{self.work}: has no trained weights; start again")
        student = self.student()
        build.load(student, state["model"])
        made = Made(
            self.target,
            self.plan,
            self.architecture,
            student,
            state["position"],
            self.work,
            self.options,
        )
        finish(
            made,
            self.held_out(),
            output,
            replace=replace,
            progress=self._progress,
            say=self._say,
        )

    def student(self) -> build.AnyStudent:
        """The student with its initial weights."""
        student = build.make(self.architecture, self.target.source, self._head_ids(), self.options)
        build.load(student, build.read_weights(self.work / INITIAL))
        return student.to(self._device)

    @property
    def architecture(self) -> DrafterPlan:
        """The drafter's shape."""
        if self.plan.architecture is None:
            raise InvalidInputError(f"{self.work}: has no plan; remove it and start again")
        return DrafterPlan.from_json(self.plan.architecture)

    def trainer(
        self, folder: Path, student: build.AnyStudent, *, measuring: bool = False
    ) -> Trainer:
        """A trainer of the plan; ``measuring``: of this process alone, and without an end."""
        if self.plan.schedule is None:
            raise InvalidInputError(f"{self.work}: has no plan yet")
        schedule = schedule_of(self.plan.schedule)
        if measuring:
            schedule = dataclasses.replace(schedule, tokens=sys.maxsize)
        teacher: Teacher = self._teacher()
        on_policy = None
        if self.options.on_policy:
            online = OnlineTeacher(self.model, build.layers_of(student))
            on_policy = OnPolicy(
                student,
                teacher,
                share=self.options.on_policy,
                tokens=self.options.on_policy_tokens,
                seed=self.options.seed,
                device=self._device,
            )
            teacher = MixedTeacher(teacher, online)
        return Trainer(
            student,
            Optimizer(student, schedule.optimizer),
            schedule,
            plan=self._digest(),
            teacher=teacher,
            teacher_head=self._teacher_head(student),
            corpus=self._corpus,
            held_out=None if measuring or not self._world.first else self.held_out(),
            folder=folder,
            world=World() if measuring else self._world,
            on_policy=on_policy,
            save_seconds=self.options.save_seconds,
            progress=None if measuring else self._progress,
            say=None if measuring else self._say,
        )

    def held_out(self) -> HeldOut:
        """Held-out conversations of the plan's text, as many as were asked for."""
        if self._held_out is None:
            corpus = Corpus.read(self.text, self.plan.shards)
            self._progress("measuring the target on held-out text", 0.0)
            self._held_out = HeldOut(
                corpus.held_out[: self.options.held_out],
                self._teacher(),
                self.model.head,
                dtype=self._dtype,
                device=self._device,
            )
        return self._held_out

    def _begin(self) -> RunPlan:
        plan = RunPlan.read(self.work)
        if plan is None:
            return RunPlan(self.options.deciding(), self.target.describe())
        check_same(plan.options, self.options, self.work)
        if plan.target["sha256"] != self.target.sha256:
            raise InvalidInputError(
                f"{self.work}: was begun for another target; name another output"
            )
        return plan

    # Text

    def _write_text(self) -> None:
        if self.options.text is not None:
            if not list_shards(self.text):
                raise InvalidInputError(f"{self.text}: holds no text (shards of .npz)")
            return
        options = measure.write_options(self.options, self.target.source.config.context)
        if self.plan.text_tokens is None:
            self.plan.text_tokens = self.options.text_tokens or measure.text_tokens(
                lambda tokens: self._write(options, tokens), self.options
            )
            self.plan.write(self.work)
        self._write(options, self.plan.text_tokens)

    def _write(self, options: WriteOptions, tokens: int) -> WriteProgress | None:
        last: list[WriteProgress] = []

        def report(found: WriteProgress) -> None:
            last[:] = [found]
            self._progress("writing text", min(1.0, found.tokens / found.wanted))

        self._progress("writing text", 0.0)
        write_text(self.target.path, self.text, measure.with_tokens(options, tokens), report)
        return last[0] if last else None

    # Plan

    def _decide(self) -> None:
        plan = self.plan
        if plan.schedule is not None and (self.work / INITIAL).is_file():
            corpus = Corpus.read(self.text, plan.shards)
            self._tell_drafter(corpus)
            self._tell_training(corpus)
            return
        plan.shards = list_shards(self.text)
        plan.manifest_sha256 = manifest_sha256(self.text)
        corpus = Corpus.read(self.text, plan.shards)
        architecture = build.architecture(self.target, self.options)
        ids = build.head_ids(architecture, corpus, self.target, self.options)
        vocab = architecture.config.vocab
        frequencies = corpus.frequencies(vocab)
        if ids is not None:
            _save_array(self.work / HEAD_IDS, ids)
        plan.architecture = architecture.as_json()
        plan.head = {
            "rows": architecture.head_size,
            "coverage": 1.0
            if ids is None
            else round(coverage(corpus.held_out_frequencies(vocab), ids), 5),
            "sha256": None if ids is None else hashlib.sha256(ids.tobytes()).hexdigest(),
        }
        self._tell_drafter(corpus)
        self._make_states(plan.shards)
        student = build.make(
            architecture, self.target.source, ids, self.options, frequencies=frequencies
        )
        self._progress("fitting the first weights", 0.0)
        build.initialise(student, self.target, self.model, corpus, self.options)
        build.write_weights(self.work / INITIAL, student.state_dict())
        schedule = build.schedule(self.options, tokens=self.options.tokens or 1)
        plan.schedule = dataclasses.asdict(schedule)
        if self.options.tokens is None:
            speed = measure.training_speed(self)
            plan.measured["training_tokens_per_second"] = round(speed, 1)
            spent = time.monotonic() - self._started
            plan.measured["seconds_before_training"] = round(spent, 1)
            tokens = measure.training_tokens(speed * self._world.size, self.options, spent)
            plan.schedule = dataclasses.asdict(build.schedule(self.options, tokens=tokens))
        plan.write(self.work)
        self._tell_training(corpus)

    def _tell_drafter(self, corpus: Corpus) -> None:
        for line in build.plan_lines(self.plan, self.target, corpus):
            self._say(line)

    def _tell_training(self, corpus: Corpus) -> None:
        self._say(build.training_line(self.plan, corpus, self._world.size))

    # States

    def _state_shape(self) -> StateShape:
        config = self.target.source.config
        architecture = self.architecture
        layers = architecture.target_layers if architecture.kind == "attached" else ()
        return StateShape(
            self.target.sha256, config.hidden, layers or (), config.kv_heads, config.head_dim
        )

    def _teacher(self) -> Teacher:
        shape = self._state_shape()
        if build.teacher_of(self.options) == "online":
            return OnlineTeacher(self.model, shape.layers)
        return CachedTeacher(self.states, shape)

    def _corpus(self, names: Sequence[str] | None) -> Corpus:
        """The text of an epoch, with its states at hand."""
        if names is None:
            names = list_shards(self.text) if self.options.follow else self.plan.shards
        if self._world.first:
            self._make_states(names)
        return Corpus.read(self.text, names)

    def _make_states(self, names: Sequence[str]) -> None:
        if build.teacher_of(self.options) == "online":
            return
        shape = self._state_shape()
        missing = missing_states(self.text, self.states, names, shape)
        if not missing:
            return
        need = disk_need(self.text, missing, shape)
        self._say(
            f"the target's states take {need / 1e9:.2f} GB in {self.states} "
            f"({shape.bytes_per_token} bytes a token)"
        )
        check_disk(self.states, need)
        write_states(self.text, self.states, missing, self.model, shape, progress=self._progress)

    # Details

    def _head_ids(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None:
        if self.plan.head is None or self.plan.head["sha256"] is None:
            return None
        path = self.work / HEAD_IDS
        try:
            ids = np.load(path, allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise InvalidInputError(f"{path}: cannot be read; remove {self.work}") from error
        if hashlib.sha256(ids.tobytes()).hexdigest() != self.plan.head["sha256"]:
            raise InvalidInputError(f"{path}: was altered; remove {self.work}")
        return np.asarray(ids, np.int64)

    def _teacher_head(self, student: build.AnyStudent) -> torch.Tensor:
        ids = student.head_ids
        return self.model.head if ids is None else self.model.head[ids.to(self._device)]

    def _digest(self) -> str:
        path = self.work / INITIAL
        weights = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return hashlib.sha256(f"{self.plan.digest()} {weights}".encode()).hexdigest()


def _save_array(path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.npy")
    np.save(partial, array)
    os.replace(partial, path)
