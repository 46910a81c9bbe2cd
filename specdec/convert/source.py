"""What every conversion begins and ends with, whatever graphs it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from specdec.convert.checkpoint import ModelSource
from specdec.convert.gguf_checkpoint import GgufCheckpoint
from specdec.convert.huggingface_checkpoint import HuggingfaceCheckpoint
from specdec.convert.tokenizer_files import write_chat_template
from specdec.errors import CheckpointError, InvalidInputError
from specdec.model_folder import write_manifest

HEAD_IDS_FILE = "head_ids.npy"


def open_source(source: Path, target_source: Path | None) -> ModelSource:
    """The checkpoint ``source``: a GGUF file (a drafter's with its target's), or a folder.

    Raises CheckpointError where it cannot be converted.
    """
    if not source.is_dir():
        checkpoint: ModelSource = GgufCheckpoint(source, target_source)
    elif target_source is None:
        checkpoint = HuggingfaceCheckpoint(source)
    else:
        raise InvalidInputError(
            f"{source}: a Hugging Face folder holds a whole model; leave target_source out"
        )
    if problem := checkpoint.config.unsupported():
        raise CheckpointError(f"{source}: it has {problem}, which is not supported")
    return checkpoint


def head_size(checkpoint: ModelSource) -> int:
    """Rows of the head: the vocabulary's, or those of a trimmed head."""
    return checkpoint.config.vocab if checkpoint.head_ids is None else len(checkpoint.head_ids)


def write_around_graph(
    checkpoint: ModelSource, folder: Path, template: str | None
) -> dict[str, Any]:
    """Writes the tokenizer, the chat ``template`` (None: the checkpoint's own) and the head's ids.

    Returns the manifest's account of the tokenizer.
    """
    tokenizer = checkpoint.write_tokenizer(folder)
    if template is not None:
        tokenizer["chat_template"] = write_chat_template(template, folder)
    if checkpoint.head_ids is not None:
        np.save(folder / HEAD_IDS_FILE, checkpoint.head_ids.astype(np.int32))
    return tokenizer


def write_model_json(
    checkpoint: ModelSource,
    folder: Path,
    *,
    name: str,
    graph: dict[str, Any],
    tokenizer: dict[str, Any],
    sampling: dict[str, Any] | None,
    context: int | None = None,
) -> None:
    """Writes the manifest as the folder's last file; ``context`` (None: the checkpoint's)."""
    config = {**checkpoint.config.as_manifest(), "head_size": head_size(checkpoint)}
    if context is not None:
        config["context"] = context
    write_manifest(
        folder,
        {
            "name": name,
            "architecture": checkpoint.architecture_name,
            "role": "drafter" if checkpoint.is_drafter else "target",
            "config": config,
            "graph": graph,
            "head_ids": None if checkpoint.head_ids is None else HEAD_IDS_FILE,
            "sampling": checkpoint.sampling if sampling is None else sampling,
            "source": checkpoint.describe(),
            "tokenizer": tokenizer,
        },
    )
