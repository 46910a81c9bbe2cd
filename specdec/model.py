"""A model folder, loaded: its session, its tokenizer, and what it recommends."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import numpy as np

from specdec import _core
from specdec.checks import shown
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.hub import resolve
from specdec.model_folder import ModelConfig, ModelFolder
from specdec.session import Session
from specdec.tokenizer import Tokenizer

# Steps of two rows and more give bit-identical rows; a single row runs through other kernels.
_MIN_TARGET_WIDTH = 2
# ONNX Runtime's attention on the CPU takes this many times head_dim rows at once, and then what is
# left: a single row again runs through other kernels.
_ATTENTION_TILE_HEADS = 2


class Model:
    """A target or a drafter. Generators share a Model's weights; each has a KV cache of its own."""

    def __init__(self, folder: ModelFolder, *, backend: str = "auto", threads: int | None = None):
        self.folder = folder
        self.tokenizer = Tokenizer.load(folder)
        self.head_ids = _load_head_ids(folder)
        self.backend = folder.backend if backend == "auto" else backend
        self.threads = threads
        self._session = Session(
            folder.graph_path, folder.config, backend=self.backend, threads=threads
        )

    @classmethod
    def load(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        backend: str = "auto",
        threads: int | None = None,
    ) -> Model:
        """Load a model by name (pulled first if need be) or from its folder.

        Args:
            name_or_folder: A name that ``specdec.pull`` knows, or a model folder.
            backend: ``"cpu"``, or ``"auto"`` for the one that the folder was made for.
            threads: Threads of one step; None takes one for each physical core.

        Raises:
            PullError: Neither a folder nor a known name, or the download failed.
            ModelFolderError: A file is missing, altered or of another format version.
            InvalidInputError: Unknown backend, or threads < 1.
        """
        if not isinstance(name_or_folder, (str, os.PathLike)):
            raise InvalidInputError(
                f"{shown(name_or_folder)} is no model; give a name, a folder or a Model"
            )
        folder = ModelFolder.open(resolve(name_or_folder))
        return cls(folder, backend=backend, threads=threads)

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return self.folder.name

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.folder.config

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja chat template; None for a model that has none."""
        path = self.folder.chat_template_path
        return None if path is None else path.read_text(encoding="utf-8")

    @property
    def recommended_sampling(self) -> dict[str, Any]:
        """Sampling parameters that the model's makers recommend."""
        return self.folder.sampling

    def new_decoder(
        self, *, capacity: int, max_logit_rows: int, as_target: bool = True
    ) -> _core.Decoder:
        """A decoder with a KV cache for ``capacity`` tokens.

        A target never runs a row alone, as a step or as the last tile of one, so that its logits
        do not depend on how many drafts are checked; a drafter may.

        Raises:
            InvalidInputError: There is no memory for that capacity.
        """
        tile = _ATTENTION_TILE_HEADS * self.config.head_dim
        try:
            return self._session.new_decoder(
                capacity=capacity,
                min_width=_MIN_TARGET_WIDTH if as_target else 1,
                # A padded step has one more row.
                max_logit_rows=max_logit_rows + (1 if as_target and max_logit_rows > tile else 0),
                row_tile=tile if as_target else 0,
                head_ids=self.head_ids,
            )
        except MemoryError:
            raise InvalidInputError(
                f"no memory for {self.name} with a context of {capacity} tokens; give the "
                "Generator a smaller max_context"
            ) from None

    @cached_property
    def width_invariant(self) -> bool:
        """Whether a row's logits are the same bits in steps of 2, 5 and 12 tokens, probed once.

        Where they are, greedy text and text of the ``coupled`` rule do not depend on draft lengths
        at all. Where they are not (other kernels, other processors), drafting still follows the
        target's distribution, but a near-tie may fall the other way.
        """
        tokens = [(7 * i + 11) % self.config.vocab for i in range(16)]
        decoder = self.new_decoder(capacity=32, max_logit_rows=16)
        decoder.forward(tokens[:4], 1)
        decoder.commit(4)
        whole = np.array(decoder.forward(tokens[4:16], 12))
        for width in (2, 5):
            if not np.array_equal(decoder.forward(tokens[4 : 4 + width], width), whole[:width]):
                return False
        decoder.forward(tokens[4:9], 1)  # in two steps, over what the wide step left behind
        decoder.commit(5)
        return np.array_equal(decoder.forward(tokens[9:16], 7), whole[5:])

    def __repr__(self) -> str:
        return f"Model({self.name!r}, layout={self.folder.layout!r}, backend={self.backend!r})"


def _load_head_ids(folder: ModelFolder) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    path = folder.head_ids_path
    if path is None:
        return None
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: not a readable array; convert the model again") from error
    size = folder.config.head_size
    if ids.dtype != np.int32 or ids.shape != (size,) or (np.diff(ids) <= 0).any():
        raise ModelFolderError(
            f"{path}: must be {size} ascending int32 ids; convert the model again"
        )
    return np.asarray(ids, dtype=np.int32)
