"""Converts checkpoints to model folders: ``convert(source, destination)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdec.convert.chat_templates import load_template
from specdec.convert.cpu_graph import GRAPH_FILE, GRAPH_VERSION, write_cpu_graph
from specdec.convert.layouts import DEFAULT_DRAFTER_LAYOUT, DEFAULT_LAYOUT, LAYOUTS
from specdec.convert.source import open_source, write_around_graph, write_model_json
from specdec.errors import InvalidInputError
from specdec.model_folder import create_model_folder

__all__ = ["DEFAULT_DRAFTER_LAYOUT", "DEFAULT_LAYOUT", "GRAPH_VERSION", "LAYOUTS", "convert"]


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
    checkpoint = open_source(source, target_source)
    layout = layout or (DEFAULT_DRAFTER_LAYOUT if checkpoint.is_drafter else DEFAULT_LAYOUT)
    name = name or destination.name
    graph = {"file": GRAPH_FILE, "backend": "cpu", "layout": layout, "version": GRAPH_VERSION}
    report("checking", 1.0)
    with create_model_folder(destination, replace=replace) as folder:
        tokenizer = write_around_graph(checkpoint, folder, template)
        write_cpu_graph(
            checkpoint,
            LAYOUTS[layout],
            folder,
            name=name,
            progress=lambda fraction: report("writing the graph", fraction),
        )
        write_model_json(
            checkpoint, folder, name=name, graph=graph, tokenizer=tokenizer, sampling=sampling
        )
    return destination
