"""What may draft for a target, and the core's drafters of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from specdec import _core
from specdec.checks import check_whole
from specdec.model import Model
from specdec.pairing import new_batch_drafters, new_model_drafter


@dataclass(frozen=True)
class Ngram:
    """Drafts looked up in the prompt and the text so far, without a model.

    The longest of the last ``max_match`` to ``min_match`` tokens that occurred before is taken, and
    what followed it then is proposed.
    """

    min_match: int = 2
    max_match: int = 4

    def __post_init__(self) -> None:
        check_whole("min_match", self.min_match, 1, 64, "1 to 64")
        at_least = f"{self.min_match} (min_match) to 64"
        check_whole("max_match", self.max_match, self.min_match, 64, at_least)


def load_draft(draft: str | os.PathLike[str] | Model | Ngram | None) -> Model | Ngram | None:
    """What is given by name or folder, loaded.

    Raises:
        PullError, ModelFolderError, BackendError: A model cannot be had.
    """
    if draft is None or isinstance(draft, (Model, Ngram)):
        return draft
    return Ngram() if draft == "ngram" else Model.load(draft)


def new_drafter(
    target: Model,
    decoder: _core.Decoder,
    draft: Model | Ngram | None,
    *,
    max_context: int,
    lookup: bool,
) -> _core.Drafter | None:
    """The core's drafter beside the target's ``decoder``; with ``lookup`` a model's looks up too.

    Raises as ``new_model_drafter``.
    """
    if draft is None:
        return None
    if isinstance(draft, Ngram):
        return _core.NgramDrafter(draft.min_match, draft.max_match)
    model = new_model_drafter(target, decoder, draft, max_context=max_context)
    if not lookup:
        return model
    ngram = Ngram()
    return _core.MixedDrafter(model, ngram.min_match, ngram.max_match)


def new_drafters(
    target: Model,
    decoders: Sequence[_core.SequenceDecoder],
    draft: Model | Ngram | None,
    *,
    max_context: int,
) -> Sequence[_core.Drafter | None]:
    """One beside each of the target's ``decoders``, for steps of several sequences.

    Raises as ``new_batch_drafters``.
    """
    if isinstance(draft, Model):
        return new_batch_drafters(target, decoders, draft, max_context=max_context)
    return [
        new_drafter(target, decoder, draft, max_context=max_context, lookup=False)
        for decoder in decoders
    ]
