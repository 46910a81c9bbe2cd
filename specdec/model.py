"""A model folder, loaded: its session, its tokenizer, and what it recommends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from specdec import _core
from specdec.checks import shown
from specdec.errors import InvalidInputError, ModelFolderError
from specdec.hub import resolve
from specdec.model_folder import ModelConfig, ModelFolder
from specdec.session import Session, check_backend
from specdec.tokenizer import Tokenizer

if TYPE_CHECKING:  # what runs graphs of fixed shape is imported with the first of them
    from specdec.htp_plan import HtpPlan
    from specdec.qnn.chain import FixedSession
    from specdec.qnn.options import QnnOptions

# Steps of two rows and more give bit-identical rows; a single row runs through other kernels.
_MIN_TARGET_WIDTH = 2
# ONNX Runtime's attention on the CPU takes this many times head_dim rows at once, and then what is
# left: a single row again runs through other kernels.
_ATTENTION_TILE_HEADS = 2


class Model:
    """A target or a drafter. Generators share a Model's weights; each has a KV cache of its own."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        backend: str = "auto",
        threads: int | None = None,
        qnn: QnnOptions | None = None,
    ):
        check_backend(backend, threads)
        if qnn is not None:
            _check_options(qnn)
        if folder.is_outdated:
            raise ModelFolderError(
                f"{folder.path}: an earlier version of specdec wrote its graph, which this one "
                "cannot run; convert its checkpoint again"
            )
        self.folder = folder
        if folder.role != "drafter":  # of which only an app that writes with it needs it
            _ = self.tokenizer
        self.head_ids = _load_head_ids(folder)
        self.backend = _choose_backend(folder, backend)
        self.threads = threads
        self._session: Session | FixedSession
        if folder.backend == "qnn":
            from specdec.qnn.chain import FixedSession

            self._session = FixedSession(folder, backend=self.backend, threads=threads, options=qnn)
        else:
            self._session = Session(folder.graph_path, folder.config, threads=threads)

    @classmethod
    def load(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        backend: str = "auto",
        threads: int | None = None,
        qnn: QnnOptions | None = None,
    ) -> Model:
        """Load a model by name (pulled first if need be) or from its folder.

        Args:
            name_or_folder: A name that ``specdec.pull`` knows, or a model folder.
            backend: ``"cpu"``; ``"qnn"`` for the NPU, or its simulator on x86-64, which takes a
                folder that was quantised for it; or ``"auto"``: of such a folder the NPU where
                there is one, and else the CPU.
            threads: Threads of one step on the CPU; None takes one for each physical core.
            qnn: How the NPU is to run it.

        Raises:
            PullError: Neither a folder nor a known name, or the download failed.
            ModelFolderError: A file is missing, altered or of another format version.
            BackendError: The NPU cannot be had, or does not take the model.
            InvalidInputError: Unknown backend, one that the folder was not made for, or
                threads < 1.
        """
        if not isinstance(name_or_folder, (str, os.PathLike)):
            raise InvalidInputError(
                f"{shown(name_or_folder)} is no model; give a name, a folder or a Model"
            )
        folder = ModelFolder.open(resolve(name_or_folder))
        return cls(folder, backend=backend, threads=threads, qnn=qnn)

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return self.folder.name

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.folder.config

    @property
    def plan(self) -> HtpPlan | None:
        """The graphs of a model of fixed shape; None for one that takes steps of any width."""
        return None if isinstance(self._session, Session) else self._session.plan

    @property
    def is_attached(self) -> bool:
        """Whether this is a drafter that works on its target's K/V and hidden states."""
        return self.config.target_layers is not None

    @property
    def half_kv(self) -> bool:
        """Whether keys and values are 16-bit floats on the CPU, else 32-bit ones."""
        return isinstance(self._session, Session) and self._session.half_kv

    @property
    def gives_hidden(self) -> bool:
        """Whether an attached drafter can read this model's hidden states."""
        return isinstance(self._session, Session) and self._session.gives_hidden

    @property
    def takes_trees(self) -> bool:
        """Whether one step may hold several tokens for one position, and a token run alone."""
        return isinstance(self._session, Session) and self._session.takes_rows

    @property
    def first_token(self) -> int | None:
        """The token that every text on this model begins with; None where any may come first."""
        sink = None if isinstance(self._session, Session) else self._session.sink
        return None if sink is None else sink.token

    @property
    def device(self) -> str:
        """What the model runs on, for people: ``"CPU"``, ``"NPU"`` or ``"NPU simulator"``."""
        if self.backend != "qnn":
            return "CPU"
        return "NPU" if _npu_present() else "NPU simulator"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelFolderError if its file is none."""
        return Tokenizer.load(self.folder)

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

        Where a row that runs alone has other bits, a target never runs one, as a step or as the
        last tile of one, so that its logits do not depend on how many drafts are checked; a drafter
        may.

        Raises:
            InvalidInputError: There is no memory for that capacity, or the model is an attached
                drafter, which has no cache of its own.
        """
        if self.is_attached:
            raise InvalidInputError(
                f"{self.name} is an attached drafter, which cannot write alone; give its target as "
                "the target, and this as the drafter"
            )
        try:
            if not isinstance(self._session, Session):
                return self._session.new_decoder(head_ids=self.head_ids)
            tile = _ATTENTION_TILE_HEADS * self.config.head_dim
            padded = as_target and not self._session.takes_rows
            return self._session.new_decoder(
                capacity=capacity,
                min_width=_MIN_TARGET_WIDTH if padded else 1,
                # A padded step has one more row.
                max_logit_rows=max_logit_rows + (1 if padded and max_logit_rows > tile else 0),
                row_tile=tile if padded else 0,
                best_only=as_target,
                head_ids=self.head_ids,
            )
        except MemoryError:
            raise InvalidInputError(
                f"no memory for {self.name} with a context of {capacity} tokens; give the "
                "Generator a smaller max_context"
            ) from None

    def new_sequence_decoders(
        self, *, sequences: int, capacity: int, max_logit_rows: int, as_target: bool = True
    ) -> list[_core.SequenceDecoder]:
        """Decoders of several sequences, each with a KV cache for ``capacity`` tokens.

        Raises:
            InvalidInputError: The model takes no steps of several sequences, or there is no memory.
        """
        session = self._check_takes_sequences(self._session)
        try:
            return session.new_sequence_decoders(
                sequences=sequences,
                capacity=capacity,
                max_logit_rows=max_logit_rows,
                best_only=as_target,
                head_ids=self.head_ids,
            )
        except MemoryError:
            raise InvalidInputError(
                f"no memory for {self.name} with {sequences} contexts of {capacity} tokens; use a "
                "smaller batch_size, or give the Generator a smaller max_context"
            ) from None

    def new_attached_decoder(
        self, target: _core.InPlaceDecoder, *, context: int
    ) -> _core.AttachedDecoder:
        """A decoder of an attached drafter, on the K/V of its target's decoder.

        ``context`` is the number of positions that it drafts in. What the target must be like is
        checked in ``specdec.pairing``.

        Raises:
            InvalidInputError: This is no attached drafter.
        """
        layers = self.config.target_layers
        if layers is None or not isinstance(self._session, Session):
            raise InvalidInputError(f"{self.name} is no attached drafter")
        return self._session.new_attached_decoder(
            target, target_layers=layers, context=context, head_ids=self.head_ids
        )

    def new_attached_sequence_decoders(
        self, targets: Sequence[_core.SequenceDecoder], *, context: int
    ) -> list[_core.AttachedSequenceDecoder]:
        """Decoders of an attached drafter, on the K/V of each of its target's decoders.

        Raises:
            InvalidInputError: This is no attached drafter, or it takes no steps of several
                sequences.
        """
        layers = self.config.target_layers
        if layers is None:
            raise InvalidInputError(f"{self.name} is no attached drafter")
        return self._check_takes_sequences(self._session).new_attached_sequence_decoders(
            targets, target_layers=layers, context=context, head_ids=self.head_ids
        )

    def _check_takes_sequences(self, session: Session | FixedSession) -> Session:
        if isinstance(session, Session) and session.takes_rows:
            return session
        raise InvalidInputError(
            f"{self.name} runs one text at a time: a step for several takes a model for the CPU in "
            f"the layout 'fused', and this one has {self.folder.layout!r}; convert it with "
            "--layout fused, or use generate()"
        )

    @cached_property
    def width_invariant(self) -> bool:
        """Whether a row's logits are the same bits in steps of 1, 2, 5 and 12 tokens, probed once.

        And in a tree, where the model takes them. A step of one token may be padded to two.

        Where they are, greedy text and text of the ``coupled`` rule do not depend on draft lengths
        at all. Where they are not (other kernels, other processors), drafting still follows the
        target's distribution, but a near-tie may fall the other way. The probe is six steps or
        seven: on the simulator of an NPU they take seconds each.
        """
        rows = 12 if self.plan is None else min(12, self.plan.widths[-1])
        end = 4 + rows
        tokens = [(7 * i + 11) % self.config.vocab for i in range(end)]
        if self.first_token is not None:
            tokens[0] = self.first_token
        decoder = self.new_decoder(capacity=32, max_logit_rows=16)
        decoder.forward(tokens[:1], 1)  # alone, as texts on models with a sink begin
        decoder.commit(1)
        decoder.forward(tokens[1:4], 1)
        decoder.commit(3)
        whole = np.array(decoder.forward(tokens[4:end], rows))
        for width in (1, 2, 5):
            if width < rows:
                part = decoder.forward(tokens[4 : 4 + width], width)
                if not np.array_equal(part, whole[:width]):
                    return False
        if self.takes_trees:
            other = (tokens[5] + 1) % self.config.vocab
            tree = decoder.forward([*tokens[4:6], other, tokens[6]], 4, [-1, 0, 0, 1])
            if not np.array_equal(tree[[0, 1, 3]], whole[:3]):
                return False
        first = min(5, rows - 1)
        decoder.forward(tokens[4 : 4 + first], 1)  # in two, over what the wide step left behind
        decoder.commit(first)
        rest = decoder.forward(tokens[4 + first : end], rows - first)
        return np.array_equal(rest, whole[first:])

    def __repr__(self) -> str:
        return f"Model({self.name!r}, layout={self.folder.layout!r}, backend={self.backend!r})"


def _check_options(qnn: Any) -> None:
    from specdec.qnn.options import QnnOptions

    if not isinstance(qnn, QnnOptions):
        raise InvalidInputError(f"qnn is {shown(qnn)}; it must be QnnOptions or None")


def _npu_present() -> bool:
    from specdec.qnn import provider

    return provider.npu_present()


def _choose_backend(folder: ModelFolder, backend: str) -> str:
    """The backend to run a folder's graphs on; the simulator is never chosen for the user."""
    if folder.backend not in ("cpu", "qnn"):
        raise ModelFolderError(
            f"{folder.path}: was made for backend {folder.backend!r}, which is unknown to this "
            "version of specdec"
        )
    if folder.backend == "cpu":
        if backend == "qnn" and folder.is_attached:
            raise InvalidInputError(
                f"{folder.name} ({folder.path}) is an attached drafter, for the CPU only, "
                "and backend is 'qnn'; use a standalone drafter"
            )
        if backend == "qnn":
            raise InvalidInputError(
                f"{folder.name} ({folder.path}) was made for the CPU and backend is 'qnn'; make "
                "one for the NPU with: specdec quantize CHECKPOINT -o FOLDER"
            )
        return "cpu"
    if backend == "cpu" and folder.is_compiled:
        raise InvalidInputError(
            f"{folder.name} ({folder.path}) is compiled and backend is 'cpu'; use 'qnn', or the "
            "folder that it was compiled from"
        )
    if backend != "auto":
        return backend
    if _npu_present():
        return "qnn"
    if folder.is_compiled:
        raise InvalidInputError(
            f"{folder.name} ({folder.path}) is compiled for an NPU and there is none here; "
            "backend='qnn' runs it in the simulator, where there is one"
        )
    return "cpu"


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
