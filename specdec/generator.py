"""Generator: the main job, from a prompt to streamed text."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec import _core
from specdec.chat import encode_chat
from specdec.checks import check_whole, is_whole, shown
from specdec.errors import (
    ContextFullError,
    GeneratorBusyError,
    InvalidInputError,
)
from specdec.model import Model
from specdec.pairing import new_model_drafter
from specdec.sampling import SamplingParams
from specdec.stats import Stats
from specdec.text_stream import TextStream
from specdec.verification import RULES

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]

_PROMPT_FORMS = "a prompt is a str, a list of messages or a list of token ids"


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


class Chunk(str):
    """New text of a stream."""

    tokens: tuple[int, ...]
    """The tokens that were committed since the chunk before; without the end-of-text token."""
    drafted: int
    """How many of them came from the drafter."""
    finish_reason: str | None
    """In the last chunk ``"stop"``, ``"length"`` or ``"cancelled"``; else None."""

    def __new__(
        cls,
        text: str,
        tokens: Sequence[int] = (),
        drafted: int = 0,
        finish_reason: str | None = None,
    ) -> Chunk:
        chunk = super().__new__(cls, text)
        chunk.tokens = tuple(tokens)
        chunk.drafted = drafted
        chunk.finish_reason = finish_reason
        return chunk


@dataclass(frozen=True)
class Result:
    """A whole text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    stats: Stats


class Generator:
    """Writes text with a target model, sped up by a drafter, in exactly the target's distribution.

    A Generator holds one conversation's KV caches: a prompt that begins as the text before it (the
    next turn of a chat) is only computed from where it differs. It writes one stream at a time.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | Model,
        draft: str | os.PathLike[str] | Model | Ngram | None = None,
        *,
        draft_length: int | str = "auto",
        draft_width: int | str = "auto",
        acceptance: str = "block",
        max_context: int | None = None,
    ):
        """Load what is given by name or folder, and set up the caches.

        Args:
            target: The model whose text is wanted.
            draft: A smaller model with the same vocabulary; ``"ngram"`` or an ``Ngram`` for drafts
                from the text so far; None decodes plainly.
            draft_length: Draft tokens that follow each other in a round, or ``"auto"``.
            draft_width: Candidates that the drafter gives for each of these tokens, of which the
                target can take any, or ``"auto"``.
            acceptance: ``"block"``, ``"token"`` or ``"coupled"``; at temperature 0 all are greedy,
                and ``"greedy"`` is for temperature 0 alone.
            max_context: Tokens that prompt and text may have together; None takes the target's
                whole context (memory is only used as it fills).

        Raises:
            InvalidInputError: A bad argument, or models that cannot go together.
            VocabularyMismatchError: Target and drafter have different vocabularies.
            PullError, ModelFolderError, BackendError: A model cannot be had.
        """
        if acceptance not in RULES:
            raise InvalidInputError(
                f"acceptance is {shown(acceptance)}; "
                f"it must be one of {', '.join(map(repr, RULES))}"
            )
        self._acceptance = acceptance
        self.target = target if isinstance(target, Model) else Model.load(target)
        context = self.target.config.context
        if max_context is not None:
            check_whole("max_context", max_context, 2, context, f"2 to {context} for this model")
        self._max_context = int(max_context or context)
        self.draft = _load_draft(draft)
        decoder = self.target.new_decoder(
            capacity=self._max_context, max_logit_rows=_core.MAX_DRAFT_LENGTH + 1
        )
        self._engine = _core.Engine(decoder, self._new_drafter(decoder))
        self._lock = threading.Lock()
        self._cancel_requested = False
        self._stats = Stats()
        self.draft_length = draft_length
        self.draft_width = draft_width

    @property
    def draft_length(self) -> int | str:
        """Draft tokens that follow each other in a round, or ``"auto"``.

        May be set at any time, from any thread; the next round obeys. InvalidInputError outside
        1..32, or beyond what one step of a fixed-shape target can check.
        """
        length = self._engine.draft_length
        return "auto" if length == _core.AUTO else length

    @draft_length.setter
    def draft_length(self, length: int | str) -> None:
        if length == "auto":
            self._engine.set_draft_length(_core.AUTO)
            return
        most = self._engine.longest_draft
        hint = "; for plain decoding leave the drafter out" if length == 0 else ""
        if most < _core.MAX_DRAFT_LENGTH and is_whole(length) and length > most:
            hint = (
                f": {self.target.name} was made to check {most} drafts in a step; convert it with "
                "a wider width for more"
            )
        wanted = f"1 to {most}, or 'auto'{hint}"
        self._engine.set_draft_length(check_whole("draft_length", length, 1, most, wanted))

    @property
    def draft_width(self) -> int | str:
        """Candidates for each draft token's position, or ``"auto"``.

        Where the target would have chosen the second candidate the round gains a token that a chain
        of drafts loses; drafts that follow each other follow the first one. Each candidate is a row
        of the target's step, at no further step of the drafter, and a step takes at most 32.

        ``"auto"``: with a draft length of ``"auto"`` as many as are expected to be worth their
        time, else 1. May be set like ``draft_length``. InvalidInputError outside 1..8, and above 1
        for a target that checks chains alone: other layouts than ``fused``, and the NPU. An n-gram
        drafter has one candidate whatever is set.
        """
        width = self._engine.draft_width
        return "auto" if width == _core.AUTO else width

    @draft_width.setter
    def draft_width(self, width: int | str) -> None:
        if width == "auto":
            self._engine.set_draft_width(_core.AUTO)
            return
        wanted = f"1 to {_core.MAX_DRAFT_WIDTH}, or 'auto'"
        check_whole("draft_width", width, 1, _core.MAX_DRAFT_WIDTH, wanted)
        if int(width) > 1 and not self._engine.target_takes_trees:
            raise InvalidInputError(
                f"draft_width is {width}, and {self.target.name} checks one candidate for each "
                "position; use 1 or 'auto', or convert it with the layout 'fused'"
            )
        self._engine.set_draft_width(int(width))

    @property
    def max_context(self) -> int:
        """Tokens that prompt and text may have together."""
        return self._max_context

    @property
    def stats(self) -> Stats:
        """Figures of the stream that runs, or of the last one; safe to read from any thread."""
        return self._stats

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        **overrides: Any,
    ) -> Iterator[Chunk]:
        """Write text, a chunk at a time.

        Closing the iterator (or leaving the loop) stops the work within a round; both caches then
        hold exactly what was committed.

        Args:
            prompt: A ``str`` is one user message, put into the model's chat template; a list of
                ``{"role", "content"}`` is a conversation; a list of ``int`` is taken as tokens.
            params: Sampling parameters; None takes the model's recommendation.
            raw: A ``str`` prompt is continued as it is, without a template.
            **overrides: Fields of SamplingParams to replace.

        Raises:
            InvalidInputError: At the call, for a bad prompt or parameter, or a prompt that does
                not begin with the token that the drafter's texts must begin with.
            ContextFullError: At the call, for a prompt longer than the context.
            GeneratorBusyError: At the first chunk, while another stream runs.
            ModelRunError: A model failed; the caches are at the committed prefix.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidInputError(f"params is {shown(params)}; it must be SamplingParams or None")
        settings = (params or SamplingParams()).override(overrides)
        settings = settings.resolve(self.target.recommended_sampling)
        if self._acceptance == "greedy" and settings.temperature != 0:
            raise InvalidInputError(
                f"acceptance 'greedy' is for temperature 0, and temperature is "
                f"{settings.temperature:g}; use 'block', which is greedy at 0 as well"
            )
        tokens = self.encode(prompt, raw=raw)
        self._check_first_token(tokens)
        if len(tokens) >= self._max_context:
            raise ContextFullError(
                f"the prompt has {len(tokens)} tokens and the context {self._max_context}; "
                "shorten the prompt or give the Generator a larger max_context"
            )
        options = _core.StreamOptions()
        options.sampling = settings.core_options(self.target.config.vocab)
        options.set_rule(self._acceptance)
        options.stop_ids = [] if settings.ignore_eos else sorted(self.target.tokenizer.stop_ids)
        options.max_tokens = min(settings.max_tokens or 0, self._max_context)
        if self._engine.max_context > self._max_context:  # a target of fixed shape has its own
            room = self._max_context - len(tokens)
            options.max_tokens = min(options.max_tokens or room, room)
        # An answer is a text of its own; a raw prompt's continuation is not.
        answers = not raw if isinstance(prompt, str) else isinstance(prompt[0], Mapping)
        text_stream = TextStream(
            self.target.tokenizer,
            settings.stop_strings,
            drop_space=answers and self.target.tokenizer.leading_space,
        )
        return self._run(tokens, options, text_stream)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        **overrides: Any,
    ) -> Result:
        """Write a whole text; arguments and errors as for ``stream``."""
        chunks = list(self.stream(prompt, params, raw=raw, **overrides))
        return Result(
            text="".join(chunks),
            tokens=tuple(token for chunk in chunks for token in chunk.tokens),
            finish_reason=chunks[-1].finish_reason or "stop",
            stats=self.stats,
        )

    def cancel(self) -> None:
        """Stop the stream that runs, within a round; from any thread."""
        self._cancel_requested = True
        self._engine.cancel()

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The prompt's tokens, as ``stream`` takes it.

        Texts on a fixed-shape target with a sink begin with one token (``Model.first_token``),
        whose keys and values were computed beforehand: it is put in front of a prompt that does
        not begin with it, whether there is a drafter or not.
        """
        tokens = self._encode(prompt, raw)
        first = self.target.first_token
        return tokens if first is None or tokens[0] == first else [first, *tokens]

    def _encode(self, prompt: Prompt, raw: bool) -> list[int]:
        tokenizer = self.target.tokenizer
        if isinstance(prompt, str):
            if not prompt:
                raise InvalidInputError("the prompt is empty")
            if raw:
                tokens = tokenizer.encode(prompt)
                if tokenizer.add_bos and tokenizer.bos_id is not None:
                    tokens.insert(0, tokenizer.bos_id)
                return tokens
            return self._encode_chat([{"role": "user", "content": prompt}])
        if isinstance(prompt, (bytes, Mapping)) or not hasattr(prompt, "__getitem__"):
            raise InvalidInputError(f"the prompt is {shown(prompt)}; {_PROMPT_FORMS}")
        if len(prompt) == 0:
            raise InvalidInputError("the prompt is empty")
        if all(isinstance(item, Mapping) for item in prompt):
            return self._encode_chat(prompt)  # type: ignore[arg-type]
        vocabulary = self.target.config.vocab
        for index, token in enumerate(prompt):
            if not is_whole(token):
                raise InvalidInputError(f"prompt item {index} is {shown(token)}; {_PROMPT_FORMS}")
            if not 0 <= int(token) < vocabulary:
                raise InvalidInputError(
                    f"prompt token {index} is {token}, outside the vocabulary of {vocabulary}"
                )
        return [int(token) for token in prompt]  # type: ignore[arg-type]

    def _check_first_token(self, tokens: Sequence[int]) -> None:
        if not isinstance(self.draft, Model):
            return
        first = self.draft.first_token
        if first is not None and tokens[0] != first:
            text = self.target.tokenizer.token_text(first)
            raise InvalidInputError(
                f"texts on the drafter {self.draft.name} begin with {text!r} (token {first}), and "
                f"this prompt with token {tokens[0]}; begin it so, or use another drafter"
            )

    def _encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return encode_chat(self.target.tokenizer, self.target.chat_template, messages)

    def _new_drafter(self, decoder: _core.Decoder) -> _core.Drafter | None:
        if self.draft is None:
            return None
        if isinstance(self.draft, Ngram):
            return _core.NgramDrafter(self.draft.min_match, self.draft.max_match)
        return new_model_drafter(self.target, decoder, self.draft, max_context=self._max_context)

    def _run(
        self, tokens: list[int], options: _core.StreamOptions, text_stream: TextStream
    ) -> Iterator[Chunk]:
        if not self._lock.acquire(blocking=False):
            raise GeneratorBusyError(
                "this Generator is writing a stream already; close that one (or cancel() it), or "
                "use a second Generator with the same Models"
            )
        try:
            self._cancel_requested = False
            self._engine.start(tokens, options)
            if self._cancel_requested:
                self._engine.cancel()
            self._engine.prefill()
            self._stats = Stats.from_totals(self._engine.totals, 0.0)
            yield from self._rounds(text_stream)
        finally:
            self._lock.release()

    def _rounds(self, text_stream: TextStream) -> Iterator[Chunk]:
        text_seconds = 0.0
        pending: list[int] = []  # committed, but their text is held back
        pending_drafted = 0
        finish = None
        while finish is None:
            outcome = self._engine.round()
            start = time.perf_counter()
            new = outcome.tokens
            if outcome.finish == _core.Finish.stop:
                new = new[:-1]
            used = text_stream.tokens_used
            text = text_stream.push(new)
            new = new[: text_stream.tokens_used - used]
            pending += new
            pending_drafted += min(outcome.drafted, len(new))
            if text_stream.stopped:
                finish = "stop"
            elif outcome.finish != _core.Finish.none:
                finish = str(outcome.finish.name)
                text += text_stream.finish()
            text_seconds += time.perf_counter() - start
            self._stats = Stats.from_totals(self._engine.totals, text_seconds)
            if text or finish is not None:
                yield Chunk(text, pending, pending_drafted, finish)
                pending, pending_drafted = [], 0


def _load_draft(draft: str | os.PathLike[str] | Model | Ngram | None) -> Model | Ngram | None:
    if draft is None or isinstance(draft, (Model, Ngram)):
        return draft
    return Ngram() if draft == "ngram" else Model.load(draft)
