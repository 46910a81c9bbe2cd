"""From a plan to the objects that train: the student, its first weights, its optimizers."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.convert.architectures import BRIDGE
from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.distill.architecture import Plan as DrafterPlan
from specdec.distill.architecture import chosen_layers, frequent_ids, parse_size, plan_drafter
from specdec.distill.corpus import Corpus, epoch_batches
from specdec.distill.export import state_of
from specdec.distill.initial import fit_bridges, make_student
from specdec.distill.llama import MATRICES, NORMS, TorchLlama
from specdec.distill.losses import Loss
from specdec.distill.optim import OptimizerSettings
from specdec.distill.options import Options
from specdec.distill.plan import RunPlan, schedule_of
from specdec.distill.progress import duration
from specdec.distill.rounding import WEIGHTS
from specdec.distill.states import padded_ids
from specdec.distill.students import AttachedStudent, StandaloneStudent
from specdec.distill.target import TargetModel
from specdec.distill.train import Schedule
from specdec.errors import InvalidInputError

LAYERS = 4
EVALUATIONS = 12
"""Held-out measurements of a run, unless asked otherwise."""

FITTED_TOKENS = 20_000
"""Tokens that bridges are fitted to."""
_FIT_BATCH = 2048

IndexArray: TypeAlias = NDArray[np.int64]
AnyStudent: TypeAlias = AttachedStudent | StandaloneStudent


def device_of(options: Options) -> torch.device:
    """Where the run trains."""
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(f"no device '{options.device}' here ({reason})") from error
    return device


def dtype_of(options: Options) -> torch.dtype:
    """What matrix products are computed in; weights and their updates are float32."""
    return torch.float32 if options.dtype == "float32" else torch.bfloat16


def teacher_of(options: Options) -> str:
    """``cached`` on a CPU, where a target's step costs most; else ``online``."""
    return options.teacher or ("cached" if device_of(options).type == "cpu" else "online")


def layers_of(student: AnyStudent) -> tuple[int, ...]:
    """The target's layers whose K/V a student reads; none for a standalone one."""
    return tuple(getattr(student, "target_layers", ()))


def architecture(target: TargetModel, options: Options) -> DrafterPlan:
    """What shape of drafter was asked for; by default, four of the target's layers."""
    config = target.source.config
    kind = options.kind or ("attached" if target.is_gguf else "standalone")
    if kind == "attached" and not target.is_gguf:
        raise InvalidInputError(
            f"{target.path}: an attached drafter takes embedding and head from its target's GGUF "
            "file; give that, or make a standalone one"
        )
    layers = options.target_layers
    head = options.head
    if head is None and (begun := _drafter_to_begin_with(options, target)) is not None:
        head = None if begun.head_ids is None else len(begun.head_ids)
    if layers is None and options.size is None and options.cost is None:
        layers = chosen_layers(config.layers, min(LAYERS, config.layers), kind)
    plan = plan_drafter(
        config,
        kind=kind,
        size=None if options.size is None else parse_size(options.size),
        cost=options.cost,
        layers=layers,
        # A Hugging Face folder holds a whole head.
        head_size=head if target.is_gguf else config.vocab,
    )
    if options.weights != WEIGHTS[0] and (plan.own_embedding or not target.is_gguf):
        raise InvalidInputError(
            f"weights '{options.weights}' are for a drafter with the embedding of a GGUF target; "
            "this one is written in bfloat16"
        )
    return plan


def head_ids(
    plan: DrafterPlan, corpus: Corpus, target: TargetModel, options: Options
) -> IndexArray | None:
    """The ids of the drafter's head; None: all.

    Those of the ``drafter.gguf`` that training begins with, where its head is as large: they are
    of all the text that it has seen. Else those that the target chose most often.
    """
    vocab = plan.config.vocab
    if plan.head_size == vocab:
        return None
    begun = _drafter_to_begin_with(options, target)
    if begun is not None and begun.head_ids is not None and len(begun.head_ids) == plan.head_size:
        return begun.head_ids.astype(np.int64)
    return frequent_ids(corpus.frequencies(vocab), plan.head_size)


def make(
    plan: DrafterPlan,
    source: ModelSource,
    ids: IndexArray | None,
    options: Options,
    *,
    frequencies: IndexArray | None = None,
) -> AnyStudent:
    """The student before its bridges are fitted; ``frequencies`` [V] of the text."""
    student = make_student(
        plan,
        source,
        origin=options.origin,
        head_ids=None if ids is None else torch.from_numpy(ids),
        seed=options.seed,
        dtype=dtype_of(options),
        frequencies=None if frequencies is None else torch.from_numpy(frequencies),
    )
    student.hold_as(options.weights)
    return student


def initialise(
    student: AnyStudent,
    target: TargetModel,
    model: TorchLlama,
    corpus: Corpus,
    options: Options,
) -> None:
    """Give the student its first weights: those asked for, or fitted bridges.

    Raises:
        InvalidInputError: The weights cannot be read, or are another student's.
    """
    if options.initial is not None:
        load(student, initial_weights(Path(options.initial), target))
    elif isinstance(student, AttachedStudent) and options.origin == "target":
        fit_bridges(student, model, _texts_to_fit(corpus, options.seed))


def _texts_to_fit(corpus: Corpus, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ids [B, L] with lengths [B], some ``FITTED_TOKENS`` tokens in all."""
    tokens = 0
    for items in epoch_batches(corpus.train, _FIT_BATCH, seed, 0):
        yield padded_ids(items), torch.tensor([len(item) for item in items])
        tokens += sum(map(len, items))
        if tokens >= FITTED_TOKENS:
            return


def with_whole_head(
    student: AnyStudent, plan: DrafterPlan, target: TargetModel, options: Options
) -> AnyStudent:
    """The same student with every id in its head."""
    whole = dataclasses.replace(plan, head_size=plan.config.vocab)
    made = make(whole, target.source, None, options)
    load(made, student.state_dict())
    return made.to(student.final_norm.device)


def schedule(options: Options, *, tokens: int) -> Schedule:
    """How a student is trained for ``tokens``."""
    return Schedule(
        tokens=tokens,
        batch_tokens=options.batch_tokens,
        accumulate=options.accumulate,
        depth=options.depth,
        loss=Loss(options.loss),
        loss_from=options.loss_from,
        loss_share=options.loss_share,
        optimizer=OptimizerSettings(
            kind=options.optimizer, learning_rate=options.rate, warmup_steps=options.warmup
        ),
        user_weight=options.user_weight,
        seed=options.seed,
        evaluate_tokens=options.evaluate_tokens or max(1, tokens // EVALUATIONS),
    )


def initial_weights(path: Path, target: TargetModel) -> dict[str, Tensor]:
    """Weights to begin with: a drafter's GGUF file, or what ``read_weights`` reads.

    Raises:
        InvalidInputError, CheckpointError: They cannot be read.
    """
    if not _is_drafter(path):
        return read_weights(path)
    source = open_source(path, target.path)
    roles = [*MATRICES, *NORMS]
    names = [f"layers.{i}.{role}" for i in range(source.config.layers) for role in roles]
    names += [f"layers.{i}.{role}" for i in source.config.bridges for role in BRIDGE]
    vectors = {*NORMS, "bridge_scale", "bridge_bias", "final_norm"}
    return state_of(
        {
            name: source.vector(name)
            if name.rpartition(".")[2] in vectors
            else source.matrix(name).dequantise()
            for name in (*names, "final_norm")
        }
    )


def _drafter_to_begin_with(options: Options, target: TargetModel) -> ModelSource | None:
    """The drafter's file that was named to begin with, where it is not a run's checkpoint."""
    if options.initial is None or not _is_drafter(Path(options.initial)):
        return None
    return open_source(Path(options.initial), target.path)


def _is_drafter(path: Path) -> bool:
    return path.suffix == ".gguf"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a run's checkpoint, or of a file that holds a student's state alone.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file's bytes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{path}: weights cannot be read ({reason})") from error
    state = document.get("model", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidInputError(f"{path}: holds no weights")
    return state


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a student's state, aside and renamed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        torch.save(dict(state), partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise InvalidInputError(f"{path}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def load(student: AnyStudent, state: Mapping[str, Tensor]) -> None:
    """Give a student weights.

    Raises:
        InvalidInputError: They are another student's.
    """
    try:
        student.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"the weights are of another shape: {reason[:300]}") from error


def plan_lines(plan: RunPlan, target: TargetModel, corpus: Corpus) -> list[str]:
    """The drafter and its text, for people."""
    if plan.architecture is None or plan.head is None:
        return []
    rows = [
        ("target", target.name),
        *DrafterPlan.from_json(plan.architecture).rows(),
        (
            "text",
            f"{corpus.tokens:,} tokens in {len(corpus.train):,} conversations; "
            f"{len(corpus.held_out):,} more are held out",
        ),
        ("head covers", f"{plan.head['coverage']:.2%} of what the target said in those"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {value}" for name, value in rows]


def training_line(plan: RunPlan, corpus: Corpus, processes: int) -> str:
    """How long training is, for people."""
    if plan.schedule is None:
        return ""
    schedule = schedule_of(plan.schedule)
    loss = schedule.loss.kind
    if loss != "kl" and schedule.loss_from > 0:
        loss = f"kl, then {loss}"
    line = (
        f"training on {schedule.tokens:,} tokens ({schedule.tokens / corpus.tokens:.1f} times the "
        f"text), loss {loss}"
    )
    if speed := plan.measured.get("training_tokens_per_second"):
        line += f", about {duration(schedule.tokens / (speed * processes))}"
    return line
