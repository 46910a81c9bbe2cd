"""What position 0 of a text holds on a model with a sink: computed in float when it was converted.

The first token's activations are thousands of times larger than all others', and integer graphs
that had to hold them would have no precision left for the rest. So no graph computes position 0.
Every text begins with one and the same token, whose keys, values and logits lie in the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.errors import ModelFolderError
from specdec.htp_plan import HtpPlan
from specdec.model_folder import ModelFolder


@dataclass(frozen=True)
class Sink:
    """The first token of every text, and what it leaves behind."""

    token: int
    key: np.ndarray[Any, Any]
    """[layers, kv_heads, head_dim], in the encoding of the past."""
    value: np.ndarray[Any, Any]
    """[layers, kv_heads, head_dim], in the encoding of the past."""
    logits: np.ndarray[Any, np.dtype[np.float32]]
    """[head_size]"""

    def for_core(self) -> dict[str, Any]:
        """As the core takes it: float16 as its bits."""
        key, value = (
            array.view(np.uint16) if array.dtype == np.float16 else array
            for array in (self.key, self.value)
        )
        return {"token": self.token, "key": key, "value": value, "logits": self.logits}


def load_sink(folder: ModelFolder, plan: HtpPlan) -> Sink | None:
    """The folder's sink; None for a model whose graphs compute every position.

    Raises:
        ModelFolderError: It is not what the plan and the manifest promise.
    """
    if plan.sink_file is None:
        return None
    path, config = folder.path / plan.sink_file, folder.config
    try:
        with np.load(path, allow_pickle=False) as file:
            sink = Sink(
                int(file["token"]),
                *(np.ascontiguousarray(file[name]) for name in ("key", "value", "logits")),
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path}: is no sink ({error}); convert the model again") from error
    shape = (config.layers, config.kv_heads, config.head_dim)
    good = (
        0 <= sink.token < config.vocab
        and sink.key.shape == sink.value.shape == shape
        and sink.key.dtype == sink.value.dtype == np.dtype(plan.key[0].type)
        and sink.logits.shape == (config.head_size,)
        and sink.logits.dtype == np.dtype(np.float32)
    )
    if not good:
        raise ModelFolderError(f"{path}: does not fit the plan; convert the model again")
    return sink
