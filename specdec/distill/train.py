"""The trainer: a function of plan, text and initial weights, whenever it is stopped and gone on.

Order, rates and losses follow from the tokens seen and never from a clock. All state is in the
checkpoint, and every random choice is keyed by the seed and the step. So a run that was killed ends
with the weights of an undisturbed one, bit for bit, on the same machine with the same number of
processes and threads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.distill import checkpoint
from specdec.distill.batches import rows_of, student_batch, total_weight
from specdec.distill.checkpoint import Position
from specdec.distill.corpus import Conversation, Corpus, epoch_batches
from specdec.distill.held_out import HeldOut, HeldOutFigures
from specdec.distill.losses import Loss, distillation_loss
from specdec.distill.optim import Optimizer, OptimizerSettings
from specdec.distill.progress import Log, duration
from specdec.distill.states import Teacher
from specdec.distill.students import Student
from specdec.distill.world import World
from specdec.errors import InvalidInputError

Progress = Callable[[str, float], None]
# A batch, the position of its step, and the batch's number in the step, to the batch to train on.
OnPolicy = Callable[[list[Conversation], Position, int], list[Conversation]]

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
EPOCHS = "epochs.json"


@dataclass(frozen=True)
class Schedule:
    """How a student is trained; with the text and the initial weights it decides the result."""

    tokens: int
    """Tokens of text to see, each as often as it is read."""
    batch_tokens: int = 2048
    """Tokens of a batch with padding; what a process holds in memory at once."""
    accumulate: int = 1
    """Batches of each process that make a step."""
    depth: int = 2
    """Drafts of a round that are unrolled, of an attached student."""
    depth_decay: float = 0.7
    """Each unrolled draft's loss counts so much of that before it (0.7^d)."""
    loss: Loss = field(default_factory=lambda: Loss("lk"))
    loss_from: float = 0.6
    """The share of the budget after which ``loss`` begins to replace KL divergence."""
    loss_share: float = 0.7
    """How much of KL it replaces, from half of the way between ``loss_from`` and the end on."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    user_weight: float = 0.3
    """What a position counts where the target wrote the user's turn."""
    seed: int = 1
    evaluate_tokens: int = 25_000
    """Held-out figures are logged each time so many tokens were seen."""
    drafts: int = 3
    """Drafts of a round that the held-out figures are of."""

    def done(self, position: Position) -> float:
        """The share of the budget that is spent, 0 to 1."""
        return min(1.0, position.tokens / self.tokens)

    def loss_at(self, position: Position) -> Loss:
        """Loss of the next step: KL, with a growing share of ``loss``."""
        ramp = (self.done(position) - self.loss_from) / max(1e-9, 1 - self.loss_from)
        share = self.loss_share * min(1.0, max(0.0, 2 * ramp)) if self.loss_from > 0 else 1.0
        if share >= 1:
            return self.loss
        if share == 0:
            return Loss("kl", self.loss.temperature)
        kl_share = 1 - share * (1 - self.loss.kl_share)
        return Loss(self.loss.kind, self.loss.temperature, kl_share, self.loss.eta)


@dataclass
class Meter:
    """Means since the last line of the log."""

    loss: float = 0.0
    acceptance: float = 0.0
    steps: int = 0
    rate: float = 0.0
    """Of the last step."""


class Trainer:
    """A student, its optimizers, and how far they have come."""

    def __init__(
        self,
        student: Student,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        plan: str,
        teacher: Teacher,
        teacher_head: Tensor,
        corpus: Callable[[Sequence[str] | None], Corpus],
        held_out: HeldOut | None,
        folder: Path,
        world: World | None = None,
        on_policy: OnPolicy | None = None,
        log_steps: int = 10,
        save_seconds: float = 60.0,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Take up the run in ``folder``, or begin one there.

        Args:
            student: With its initial weights, which a checkpoint replaces.
            optimizer: Of its parameters.
            schedule: How it is trained.
            plan: Digest of all that decides the result but the text; another one's checkpoint is
                refused.
            teacher: Gives the target's states of a batch.
            teacher_head: The target's head rows of the student's ids, in the compute type.
            corpus: The text of the named shards; of None: of all that are ready now. Asked at each
                epoch's beginning, and the answer is kept, so that a run gone on meets the same.
            held_out: Measures the student; None: it is not measured.
            folder: Where checkpoint and log lie.
            world: The processes that train together.
            on_policy: Replaces a batch by one that the student wrote, or leaves it as it is.
            log_steps: Steps between two lines of the log.
            save_seconds: Seconds between two checkpoints; decides nothing.
            progress: Called with a stage and the fraction of it that is done.
            say: Called with a line for people at each measurement.
        """
        self.student = student
        self.position = Position()
        self._schedule = schedule
        self._optimizer = optimizer
        self._plan = plan
        self._teacher = teacher
        self._teacher_head = teacher_head
        self._read_corpus = corpus
        self._held_out = held_out
        self._folder = folder
        self._world = world or World()
        self._on_policy = on_policy
        self._log_steps = log_steps
        self._save_seconds = save_seconds
        self._progress = progress or (lambda stage, fraction: None)
        self._say = say or (lambda line: None)
        self._left = ""  # how long it will still take, for people
        module = _module(student)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._meter = Meter()
        self._evaluated = 0  # tokens at the last evaluation
        self._resume()
        begun = self.position.step > 0
        self._log = (
            Log(folder / LOG, step=self.position.step if begun else -1)
            if self._world.first
            else None
        )

    def run(self, *, stop: Callable[[Position], bool] = lambda position: False) -> None:
        """Train until the budget is seen, or ``stop`` says so before a step; saves at the end."""
        saved = started = time.monotonic()
        before = self.position.seconds
        first_tokens = self.position.tokens
        if self.position.step == 0:
            self._evaluate()
        while not self._done() and not stop(self.position):
            groups = self._groups(self.position.epoch)
            per_step = self._world.size * self._schedule.accumulate
            while self.position.batch * per_step < len(groups) and not self._done():
                if stop(self.position):
                    break
                at = self.position.batch * per_step
                self._step(groups[at : at + per_step])
                now = time.monotonic()
                self.position.seconds = before + now - started
                self._tell(now - started, first_tokens)
                due = self._world.agree(now - saved >= self._save_seconds)
                if due and not self._done():
                    self.save()
                    saved = time.monotonic()
            else:
                if not self._done():
                    self.position.epoch += 1
                    self.position.batch = 0
        self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        if self._world.first:
            checkpoint.save(
                self._folder / CHECKPOINT,
                plan=self._plan,
                position=self.position,
                model=_module(self.student).state_dict(),
                optimizer=self._optimizer.state_dict(),
                generator=torch.get_rng_state(),
                extra={"meter": vars(self._meter), "evaluated": self._evaluated},
            )
        self._world.barrier()

    def measure(self) -> HeldOutFigures | None:
        """The held-out figures as they are now."""
        if self._held_out is None:
            return None
        return self._held_out(self.student, self._schedule.drafts)

    def _done(self) -> bool:
        return self.position.tokens >= self._schedule.tokens

    def _resume(self) -> None:
        state = checkpoint.load(self._folder / CHECKPOINT, plan=self._plan)
        if state is None:
            torch.manual_seed(self._schedule.seed)
            return
        _module(self.student).load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.position = state["position"]
        self._meter = Meter(**state["extra"]["meter"])
        self._evaluated = state["extra"]["evaluated"]

    def _groups(self, epoch: int) -> list[list[Conversation]]:
        """The epoch's batches; its shards are written down before the first of them is used."""
        path = self._folder / EPOCHS
        epochs = self._world.agree(_read_epochs(path) if self._world.first else None)
        known = epochs[epoch] if epoch < len(epochs) else None
        corpus = self._read_corpus(known) if self._world.first else None
        names = self._world.agree(corpus.shards if corpus else None)
        if corpus is None:
            corpus = self._read_corpus(names)
        elif known is None:
            _write_epochs(path, [*epochs[:epoch], list(names)])
        schedule = self._schedule
        return epoch_batches(corpus.train, schedule.batch_tokens, schedule.seed, epoch)

    def _step(self, group: Sequence[list[Conversation]]) -> None:
        """One optimizer step on the batches of all processes."""
        schedule, world = self._schedule, self._world
        loss = schedule.loss_at(self.position)
        own = list(group[world.rank :: world.size])
        if self._on_policy is not None:
            own = [
                self._on_policy(items, self.position, world.rank + world.size * place)
                for place, items in enumerate(own)
            ]
        weights = [total_weight(items, schedule.user_weight, self._skip) for items in own]
        total, tokens = world.sum([sum(weights), sum(len(i) for items in own for i in items)])
        own_sums = [self._backward(items, loss, total) for items in own]
        world.sum_gradients(self._parameters)
        sums = world.sum([sum(part) for part in zip(*own_sums, strict=True)] or [0.0, 0.0])
        try:
            self._meter.rate, _ = self._optimizer.step(schedule.done(self.position))
        except FloatingPointError as error:
            raise InvalidInputError(
                f"{error}: train with a lower rate than {schedule.optimizer.learning_rate:g}"
            ) from error
        self.position.step += 1
        self.position.batch += 1
        self.position.tokens += int(tokens)
        self._meter.loss += sums[0]
        self._meter.acceptance += sums[1]
        self._meter.steps += 1

    @property
    def _depth(self) -> int:
        return self._schedule.depth if self.student.kind == "attached" else 1

    @property
    def _skip(self) -> int:
        """First positions of a text, where a round cannot have unrolled so far."""
        return self._depth - 1

    def _backward(self, items: list[Conversation], loss: Loss, total: float) -> tuple[float, float]:
        """Add the gradient of a batch; its share of the step's loss, and of its acceptance."""
        schedule, student = self._schedule, self.student
        rows = rows_of(items)
        kept = rows.index >= self._skip
        weight = rows.weight(schedule.user_weight)[kept].to(self._device)
        if not len(weight):
            return 0.0, 0.0
        states = self._teacher(items)
        layers = getattr(student, "target_layers", ())
        dtype = student.head().dtype
        batch = student_batch(items, states, layers, dtype).to(self._device)
        outputs = student(batch, self._depth)
        position = rows.position[kept].to(self._device)
        hidden = states.hidden.to(self._device).flatten(0, 1)[position]
        factors = [schedule.depth_decay**draft for draft in range(self._depth)]
        result = distillation_loss(
            [output.flatten(0, 1)[position] for output in outputs],
            hidden,
            student.head(),
            weight,
            loss,
            teacher_head=self._teacher_head,
            step_weights=[factor / sum(factors) for factor in factors],
            total_weight=total,
        )
        torch.autograd.backward(result.loss)
        share = float(weight.sum()) / total
        return result.loss.item(), result.acceptance[0].item() * share

    def _evaluate(self) -> None:
        figures = self.measure() if self._world.first else None
        if self._log is not None and figures is not None:
            self._log.write(**self._where(), held_out=figures.as_dict())
            drafts = " ".join(f"{value:.3f}" for value in figures.acceptance)
            self._say(
                f"{self.position.tokens:,} of {self._schedule.tokens:,} tokens: held-out "
                f"acceptance by draft {drafts}, block efficiency {figures.block_efficiency:.2f}"
                f"{self._left}"
            )
        self._evaluated = self.position.tokens
        self._world.barrier()

    def _tell(self, elapsed: float, first_tokens: int) -> None:
        position, schedule = self.position, self._schedule
        left = max(0, schedule.tokens - position.tokens)
        seconds = left * elapsed / max(1, position.tokens - first_tokens)
        self._left = f"; {duration(seconds)} left" if left else ""
        if self._meter.steps >= self._log_steps or self._done():
            if self._log is not None:
                self._log.write(
                    **self._where(),
                    loss=round(self._meter.loss / self._meter.steps, 5),
                    acceptance=round(self._meter.acceptance / self._meter.steps, 5),
                    rate=self._meter.rate,
                    tokens_per_second=round((position.tokens - first_tokens) / elapsed, 1),
                )
            self._meter = Meter()
        if self._done() or position.tokens - self._evaluated >= schedule.evaluate_tokens:
            self._evaluate()
        self._progress("training", min(1.0, position.tokens / schedule.tokens))

    def _where(self) -> dict[str, Any]:
        position = self.position
        return {
            "step": position.step,
            "tokens": position.tokens,
            "epoch": position.epoch,
            "seconds": round(position.seconds, 1),
        }


def _read_epochs(path: Path) -> list[list[str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return [list(map(str, names)) for names in found]
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from error


def _write_epochs(path: Path, epochs: list[list[str]]) -> None:
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(epochs) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def _module(student: Student) -> nn.Module:
    """A student as the module that it is."""
    if not isinstance(student, nn.Module):
        raise InvalidInputError("a student is a torch module")
    return student
