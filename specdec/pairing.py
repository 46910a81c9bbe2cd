"""Whether a model can draft for a target, and the core's drafter for the two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdec import _core
from specdec.errors import InvalidInputError, ModelFolderError, VocabularyMismatchError

if TYPE_CHECKING:
    from specdec.model import Model


def new_model_drafter(
    target: Model, decoder: _core.Decoder, draft: Model, *, max_context: int
) -> _core.Drafter:
    """A drafter that runs ``draft`` beside the target's ``decoder``.

    A standalone drafter gets a KV cache of its own for at most ``max_context`` tokens; an attached
    one works in the memory of ``decoder``, which it keeps alive.

    Raises:
        VocabularyMismatchError: The two models have different vocabularies.
        InvalidInputError: They cannot go together for another reason.
        ModelFolderError: The target was made by a version that gave no hidden states.
    """
    _check_vocabulary(target, draft)
    context = min(max_context, draft.config.context)
    if draft.is_attached:
        _check_attachment(target, draft)
        assert isinstance(decoder, _core.InPlaceDecoder)
        return _core.AttachedDrafter(draft.new_attached_decoder(decoder, context=context))
    return _core.ModelDrafter(
        draft.new_decoder(capacity=context, max_logit_rows=2, as_target=False)
    )


def new_batch_drafters(
    target: Model,
    decoders: Sequence[_core.SequenceDecoder],
    draft: Model,
    *,
    max_context: int,
) -> list[_core.Drafter]:
    """A drafter for each of the target's ``decoders``; one step may run several of them.

    Raises:
        InvalidInputError: ``draft`` takes no steps of several sequences; or as
            ``new_model_drafter``, with its other errors.
    """
    _check_vocabulary(target, draft)
    context = min(max_context, draft.config.context)
    if draft.is_attached:
        _check_attachment(target, draft)
        attached = draft.new_attached_sequence_decoders(decoders, context=context)
        return [_core.AttachedDrafter(decoder) for decoder in attached]
    standalone = draft.new_sequence_decoders(
        sequences=len(decoders), capacity=context, max_logit_rows=2, as_target=False
    )
    return [_core.ModelDrafter(decoder) for decoder in standalone]


def check_first_token(target: Model, draft: Model, tokens: Sequence[int]) -> None:
    """Raise InvalidInputError for a text that does not begin with the token the drafter needs."""
    first = draft.first_token
    if first is not None and tokens[0] != first:
        text = target.tokenizer.token_text(first)
        raise InvalidInputError(
            f"texts on the drafter {draft.name} begin with {text!r} (token {first}), and this "
            f"prompt with token {tokens[0]}; begin it so, or use another drafter"
        )


def _check_vocabulary(target: Model, draft: Model) -> None:
    if target.folder.tokenizer.vocabulary_sha256 != draft.folder.tokenizer.vocabulary_sha256:
        ours, theirs = target.tokenizer, draft.tokenizer
        raise VocabularyMismatchError(
            f"{target.name} ({ours.vocabulary_size} tokens) and {draft.name} "
            f"({theirs.vocabulary_size}) do not share one vocabulary; use a drafter that was "
            "made for this target, or draft='ngram'"
        )
    if draft.config.vocab > target.config.vocab:
        raise VocabularyMismatchError(
            f"{draft.name} can propose {draft.config.vocab} tokens with padding, and "
            f"{target.name} takes {target.config.vocab}; use a drafter that was made for this "
            "target, or draft='ngram'"
        )
    first, wanted = target.first_token, draft.first_token
    if first is not None and wanted not in (None, first):
        raise InvalidInputError(
            f"texts on {target.name} begin with token {first}, and on the drafter {draft.name} "
            f"with token {wanted}; use a drafter that was made for this target"
        )


def _check_attachment(target: Model, draft: Model) -> None:
    if target.plan is not None:
        raise InvalidInputError(
            f"{draft.name} is an attached drafter, which reads the states of a target that was "
            f"made for the CPU, and {target.name} has graphs of fixed shape; use a standalone "
            "drafter"
        )
    problem = draft.config.attachment_problem(target.config)
    if problem is not None:
        raise InvalidInputError(
            f"{draft.name} is an attached drafter that does not fit {target.name}: {problem}; use "
            "a drafter that was made for this target"
        )
    if not target.gives_hidden:
        raise ModelFolderError(
            f"{target.folder.path}: was made by an older version of specdec, without the hidden "
            f"states that the drafter {draft.name} reads; pull or convert it again"
        )
    if target.half_kv != draft.half_kv:
        raise InvalidInputError(
            f"{draft.name} is an attached drafter whose graph reads keys and values in "
            f"{16 if draft.half_kv else 32} bits, and {target.name} writes them in "
            f"{16 if target.half_kv else 32}; convert one of them anew, with the "
            "other's --layout"
        )
