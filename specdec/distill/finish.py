"""The last stage: from trained weights to a measured model folder."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdec.convert import convert
from specdec.convert.htp.layouts import HTP_LAYOUTS
from specdec.distill import build, export
from specdec.distill.architecture import Plan as DrafterPlan
from specdec.distill.checkpoint import Position
from specdec.distill.evaluate.figures import ALL_KINDS
from specdec.distill.held_out import HeldOut
from specdec.distill.options import Options
from specdec.distill.plan import RunPlan, write_json
from specdec.distill.plot import fit, held_out_curve
from specdec.distill.progress import duration, read_log
from specdec.distill.rounding import BITS, WEIGHTS
from specdec.distill.target import TargetModel
from specdec.distill.temperature import sharpen
from specdec.distill.train import LOG
from specdec.model_folder import MANIFEST, ModelFolder, create_model_folder, write_manifest

Progress = Callable[[str, float], None]
Say = Callable[[str], None]

DRAFTER = "drafter.gguf"
DRAFTER_FOLDER = "drafter"
REPORT = "report.json"
GAMMA = 3
"""Drafts of a round that a finished drafter is measured with."""
_TEMPERATURES = (0.0, 1.0)
_TOKENS = 64
_FIGURES = {
    "float": "unrounded",
    "int8": "in 8 bits",
    "int4": "in 4 bits",
    "whole_head": "with a whole head",
}


@dataclass(frozen=True)
class Made:
    """What training left."""

    target: TargetModel
    plan: RunPlan
    architecture: DrafterPlan
    student: build.AnyStudent
    position: Position
    work: Path
    options: Options


def finish(
    made: Made,
    held_out: HeldOut,
    output: Path,
    *,
    replace: bool,
    progress: Progress,
    say: Say,
) -> None:
    """Export a trained student, measure it, and put the model folder in place.

    The logits are scaled to what held-out text says (``specdec.distill.temperature``).

    Raises:
        InvalidInputError, ModelFolderError: Something cannot be written.
    """
    progress("measuring how sure the drafter should be", 0.0)
    student = made.student
    scale = sharpen(student.final_norm, lambda: held_out(student, GAMMA).block_efficiency)
    progress("writing the drafter", 0.0)
    source = write_drafter(made, output.name)
    folder = made.work / "model"
    convert(
        source,
        folder,
        layout=None if made.options.layout in HTP_LAYOUTS else made.options.layout,
        name=output.name,
        target_source=made.target.path if source.is_file() else None,
        chat_template=made.options.chat_template,
        replace=folder.exists(),
        progress=progress,
    )
    acceptance: dict[str, Any] = {"held_out": compare(made, held_out, progress)}
    if made.options.prompts_per_kind:
        acceptance["runtime"] = measure_pair(made, folder, progress)
    plan = made.plan
    record = {
        "target": made.target.describe(),
        "kind": made.architecture.kind,
        "target_layers": made.architecture.target_layers,
        "text": {"manifest_sha256": plan.manifest_sha256, "shards": len(plan.shards)},
        "head": plan.head,
        "loss": (plan.schedule or {}).get("loss"),
        "schedule": plan.schedule,
        "logit_scale": round(scale, 4),
        "tokens_seen": made.position.tokens,
        "steps": made.position.step,
        "training_seconds": round(made.position.seconds),
        "acceptance": acceptance,
        "curve": learning_curve(made.work),
    }
    write_json(made.work / REPORT, record)
    _put(made, folder, output, record, source, replace=replace, progress=progress)
    for line in report_lines(record):
        say(line)


def write_drafter(made: Made, name: str) -> Path:
    """Write the drafter's checkpoint: a GGUF file, or a folder with an embedding of its own."""
    weights = export.weights_of(made.student.state_dict())
    attached = made.architecture.kind == "attached"
    shape = dataclasses.replace(
        made.student.config,
        target_layers=made.architecture.target_layers if attached else None,
    )
    target = made.target
    if made.architecture.own_embedding or not target.is_gguf:
        folder = made.work / DRAFTER_FOLDER
        for tensor in ("embedding", *(() if shape.tied_head else ("head",))):
            if tensor not in weights:
                weights[tensor] = target.source.matrix(tensor).dequantise()
        given = None if target.is_gguf else target.path
        export.write_huggingface(folder, shape, weights, target=target.source, target_folder=given)
        return folder
    ids = made.student.head_ids
    export.write_gguf(
        made.work / DRAFTER,
        shape,
        weights,
        name=name,
        target=target.name,
        head_ids=None if ids is None else ids.cpu().numpy(),
        rope_factors=target.source.rope_factors,
        held_as=made.options.weights,
    )
    return made.work / DRAFTER


def compare(made: Made, held_out: HeldOut, progress: Progress) -> dict[str, Any]:
    """Held-out figures without any rounding, as exported, and with every id in the head."""
    held_as = made.options.weights

    def measured(which: str, student: build.AnyStudent) -> dict[str, Any]:
        progress(f"measuring the drafter on held-out text, {_FIGURES[which]}", 0.0)
        return held_out(student, GAMMA).as_dict()

    found = {"float": measured("float", _unrounded(made))}
    exported = copy.deepcopy(made.student)
    exported.load_state_dict(
        export.state_of(export.as_exported(export.weights_of(exported.state_dict()), held_as))
    )
    name = f"int{BITS[held_as]}"
    found[name] = measured(name, exported)
    if made.student.head_ids is not None:
        whole = build.with_whole_head(made.student, made.architecture, made.target, made.options)
        found["whole_head"] = measured("whole_head", whole)
    return found


def _unrounded(made: Made) -> build.AnyStudent:
    """The student with its weights as they are, whatever they were trained to be rounded to."""
    if made.options.weights == WEIGHTS[0]:
        return made.student
    options = dataclasses.replace(made.options, weights=WEIGHTS[0])
    ids = made.student.head_ids
    rows = None if ids is None else ids.cpu().numpy()
    student = build.make(made.architecture, made.target.source, rows, options)
    build.load(student, made.student.state_dict())
    return student.to(made.student.final_norm.device)


def learning_curve(work: Path) -> dict[str, Any]:
    """Held-out acceptance against the tokens seen, and what the fit says of more of them."""
    tokens, acceptance = held_out_curve(read_log(work / "train" / LOG))
    curve = fit(tokens, [values[0] for values in acceptance])
    found: dict[str, Any] = {"tokens": tokens, "acceptance": acceptance}
    if curve is not None:
        found["fit"] = dataclasses.asdict(curve)
        found["expected"] = {
            f"{factor} times the tokens": round(curve.at(factor * tokens[-1]), 4)
            for factor in (2, 4, 8)
        }
    return found


def report_lines(record: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = [
        f"{record['tokens_seen']:,} tokens seen in {record['steps']:,} steps, "
        f"{duration(record['training_seconds'])} of training"
    ]
    for name, figures in record["acceptance"]["held_out"].items():
        drafts = " ".join(f"{value:.3f}" for value in figures["acceptance"])
        lines.append(
            f"held out, {_FIGURES[name]}: acceptance by draft {drafts}; block efficiency "
            f"{figures['block_efficiency']:.2f} at temperature 1 (k = {GAMMA})"
        )
    for cell in record["acceptance"].get("runtime", {}).get("cells", ()):
        if cell["kind"] == ALL_KINDS:
            lines.append(
                f"in the runtime, {cell['prompts']} prompts, temperature "
                f"{cell['temperature']:g}: block efficiency {cell['block_efficiency']:.2f} "
                f"(k = {cell['draft_length']})"
            )
    return lines


def measure_pair(made: Made, folder: Path, progress: Progress) -> dict[str, Any]:
    """The drafter in the runtime itself, on a few prompts that come with specdec."""
    from specdec.benchmark.prompts import PromptSet, load_prompts
    from specdec.distill.evaluate import evaluate_pair
    from specdec.hub import resolve
    from specdec.model import Model

    target, options = made.target, made.options
    if target.known:
        target_folder = resolve(target.name, progress=progress)
    else:
        target_folder = made.work / "target"
        if not (target_folder / MANIFEST).is_file():
            convert(
                target.path, target_folder, chat_template=options.chat_template, progress=progress
            )
    prompts = [
        PromptSet(kind.name, kind.prompts[: options.prompts_per_kind]) for kind in load_prompts([])
    ]
    report = evaluate_pair(
        Model.load(target_folder, threads=options.threads),
        Model.load(folder, threads=options.threads),
        prompts,
        gammas=(GAMMA,),
        temperatures=_TEMPERATURES,
        max_tokens=_TOKENS,
        seed=options.seed,
        progress=progress,
    )
    cells = []
    for cell in report.cells:
        cells.append(
            {
                "kind": cell.kind,
                "temperature": cell.temperature,
                "draft_length": cell.gamma,
                "prompts": cell.prompts,
                "tokens": cell.tokens,
                "block_efficiency": round(cell.block_efficiency.value, 4),
                "acceptance": [None if e is None else round(e.value, 4) for e in cell.acceptance],
            }
        )
    return {
        "cells": cells,
        "texts_identical": None if report.texts is None else report.texts.identical,
    }


def _put(
    made: Made,
    folder: Path,
    output: Path,
    record: dict[str, Any],
    source: Path,
    *,
    replace: bool,
    progress: Progress,
) -> None:
    """Make ``output`` of the measured folder, or of one for an NPU where that was asked for."""
    target, options = made.target, made.options
    if options.layout in HTP_LAYOUTS:
        from specdec.quantize import Settings, quantize

        folder = made.work / "model-npu"
        quantize(
            source,
            folder,
            Settings(layout=str(options.layout), seed=options.seed),
            target_source=target.path if source.is_file() else None,
            name=output.name,
            chat_template=options.chat_template,
            replace=folder.exists(),
            progress=progress,
        )
    manifest = dict(ModelFolder.open(folder, verify=False).manifest)
    files = manifest.pop("files")
    manifest.pop("format")
    manifest["source"] = {
        **manifest["source"], "target": target.name, "target_sha256": target.sha256
    }  # fmt: skip
    manifest["distillation"] = record
    with create_model_folder(output, replace=replace) as partial:
        for name in files:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, partial / name)
        write_manifest(partial, manifest)
