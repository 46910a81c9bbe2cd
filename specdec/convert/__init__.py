"""Converts checkpoints to model folders: ``convert(source, destination)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from specdec.convert.chat_templates import load_template
from specdec.convert.checkpoint import ModelSource
from specdec.convert.cpu_graph import GRAPH_FILE, GRAPH_VERSION, write_cpu_graph
from specdec.convert.gguf_checkpoint import GgufCheckpoint
from specdec.convert.huggingface_checkpoint import HuggingfaceCheckpoint
from specdec.convert.layouts import DEFAULT_DRAFTER_LAYOUT, DEFAULT_LAYOUT, LAYOUTS
from specdec.convert.tokenizer_files import write_chat_template
from specdec.errors import CheckpointError, InvalidInputError
from specdec.model_folder import create_model_folder, write_manifest

__all__ = ["DEFAULT_DRAFTER_LAYOUT", "DEFAULT_LAYOUT", "GRAPH_VERSION", "LAYOUTS", "convert"]

HEAD_IDS_FILE = "head_ids.npy"


def convert(
    source: Path,
    destination: Path,
    *,
    layout: str | None = None,
    name: str | None = None,
    target_source: Path | None = None,
    sampling: dict[str, Any] | None = None,
    chat_template: str | None = None,
    replace: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """Converts the checkpoint ``source`` to the model folder ``destination``; returns it.

    ``source`` is a GGUF file, or a Hugging Face folder (``config.json``, safetensors, tokenizer).
    ``layout`` is one of ``LAYOUTS``; None takes the default for a target or a drafter. ``name`` is
    the model's name (None: the folder's). A drafter's checkpoint needs ``target_source``, its
    target's GGUF file. ``sampling`` holds the model's recommended sampling parameters (None: what
    the checkpoint says of them). ``chat_template`` is the name of a template that comes with
    specdec, or a file (None: the checkpoint's own). ``replace`` allows an existing folder to be
    replaced. ``progress`` is called with a stage and the fraction of it that is done.

    Raises CheckpointError for a checkpoint that cannot be converted, ModelFolderError for a
    destination that cannot be written. Either way nothing is left behind.
    """
    report = progress or (lambda stage, fraction: None)
    if layout is not None and layout not in LAYOUTS:
        raise InvalidInputError(f"no layout '{layout}': choose one of {', '.join(LAYOUTS)}")
    report("checking", 0.0)
    template = None if chat_template is None else load_template(chat_template)
    checkpoint = _open(source, target_source)
    if problem := checkpoint.config.unsupported():
        raise CheckpointError(f"{source}: it has {problem}, which is not supported")
    layout = layout or (DEFAULT_DRAFTER_LAYOUT if checkpoint.is_drafter else DEFAULT_LAYOUT)
    name = name or destination.name
    manifest: dict[str, Any] = {
        "name": name,
        "architecture": checkpoint.architecture_name,
        "role": "drafter" if checkpoint.is_drafter else "target",
        "config": _config_section(checkpoint),
        "graph": {
            "file": GRAPH_FILE,
            "backend": "cpu",
            "layout": layout,
            "version": GRAPH_VERSION,
        },
        "head_ids": None if checkpoint.head_ids is None else HEAD_IDS_FILE,
        "sampling": checkpoint.sampling if sampling is None else sampling,
        "source": checkpoint.describe(),
    }
    report("checking", 1.0)
    with create_model_folder(destination, replace=replace) as folder:
        manifest["tokenizer"] = checkpoint.write_tokenizer(folder)
        if template is not None:
            manifest["tokenizer"]["chat_template"] = write_chat_template(template, folder)
        if checkpoint.head_ids is not None:
            np.save(folder / HEAD_IDS_FILE, checkpoint.head_ids.astype(np.int32))
        write_cpu_graph(
            checkpoint,
            LAYOUTS[layout],
            folder,
            name=name,
            progress=lambda fraction: report("writing the graph", fraction),
        )
        write_manifest(folder, manifest)
    return destination


def _open(source: Path, target_source: Path | None) -> ModelSource:
    if not source.is_dir():
        return GgufCheckpoint(source, target_source)
    if target_source is not None:
        raise InvalidInputError(
            f"{source}: a Hugging Face folder holds a whole model; leave target_source out"
        )
    return HuggingfaceCheckpoint(source)


def _config_section(checkpoint: ModelSource) -> dict[str, Any]:
    config = checkpoint.config
    head_size = config.vocab if checkpoint.head_ids is None else len(checkpoint.head_ids)
    return {**config.as_manifest(), "head_size": head_size}
