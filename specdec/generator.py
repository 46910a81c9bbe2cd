"""Generator: the main job, from a prompt to streamed text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from itertools import repeat
from typing import Any

from specdec import _core
from specdec.batch import LARGEST, Batch, Job
from specdec.checks import check_whole, is_whole, shown
from specdec.chunk import Chunk, ChunkWriter, Result
from specdec.drafters import Ngram, load_draft, new_drafter, new_drafters
from specdec.errors import (
    ContextFullError,
    GeneratorBusyError,
    InvalidInputError,
)
from specdec.model import Model
from specdec.pairing import check_first_token
from specdec.prompt import Prompt, prompt_tokens
from specdec.sampling import SamplingParams
from specdec.stats import Stats
from specdec.text_stream import TextStream
from specdec.verification import RULES

__all__ = ["Chunk", "Generator", "Ngram", "Prompt", "Result"]


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
        lookup: bool = True,
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
            lookup: With a drafter model and a draft length of ``"auto"``: whether rounds may draft
                what followed the last words before (as ``"ngram"`` does) where that is worth more
                than what the model would draft. Texts of a batch draft from the model alone.

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
        if not isinstance(lookup, bool):
            raise InvalidInputError(f"lookup is {shown(lookup)}; it must be True or False")
        self.target = target if isinstance(target, Model) else Model.load(target)
        context = self.target.config.context
        if max_context is not None:
            check_whole("max_context", max_context, 2, context, f"2 to {context} for this model")
        self._max_context = int(max_context or context)
        self.draft = load_draft(draft)
        decoder = self.target.new_decoder(
            capacity=self._max_context, max_logit_rows=_core.MAX_DRAFT_LENGTH + 1
        )
        drafter = new_drafter(
            self.target, decoder, self.draft, max_context=self._max_context, lookup=lookup
        )
        self._engine = _core.Engine(decoder, drafter)
        self._lock = threading.Lock()
        self._cancel_requested = False
        self._stats: Callable[[], Stats] = Stats
        self._batch: Batch | None = None  # kept for its caches
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
        self._engine.set_draft_length(self._draft_length_code(length))

    def _draft_length_code(self, length: Any) -> int:
        if isinstance(length, str) and length == "auto":
            return _core.AUTO
        most = self._engine.longest_draft
        hint = "; for plain decoding leave the drafter out" if length == 0 else ""
        if most < _core.MAX_DRAFT_LENGTH and is_whole(length) and length > most:
            hint = (
                f": {self.target.name} was made to check {most} drafts in a step; convert it with "
                "a wider width for more"
            )
        wanted = f"1 to {most}, or 'auto'{hint}"
        return check_whole("draft_length", length, 1, most, wanted)

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
        """Figures of the stream that runs, or of the last one; safe to read from any thread.

        Of a batch, the texts that have ended, taken together.
        """
        return self._stats()

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
        return self._run(*self._prepare(prompt, params, raw, overrides))

    def _settings(
        self, params: SamplingParams | None, overrides: Mapping[str, Any]
    ) -> SamplingParams:
        if params is not None and not isinstance(params, SamplingParams):
            raise InvalidInputError(f"params is {shown(params)}; it must be SamplingParams or None")
        settings = (params or SamplingParams()).override(overrides)
        settings = settings.resolve(self.target.recommended_sampling)
        if self._acceptance == "greedy" and settings.temperature != 0:
            raise InvalidInputError(
                f"acceptance 'greedy' is for temperature 0, and temperature is "
                f"{settings.temperature:g}; use 'block', which is greedy at 0 as well"
            )
        return settings

    def _prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        raw: bool,
        overrides: Mapping[str, Any],
    ) -> tuple[list[int], _core.StreamOptions, TextStream]:
        settings = self._settings(params, overrides)
        tokens = self.encode(prompt, raw=raw)
        if isinstance(self.draft, Model):
            check_first_token(self.target, self.draft, tokens)
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
        return tokens, options, text_stream

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        **overrides: Any,
    ) -> Result:
        """Write a whole text; arguments and errors as for ``stream``."""
        return Result.from_chunks(list(self.stream(prompt, params, raw=raw, **overrides)))

    def stream_many(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        batch_size: int = 8,
        draft_length: int | str | Sequence[int | str] | None = None,
        raw: bool = False,
        **overrides: Any,
    ) -> Iterator[tuple[int, Chunk]]:
        """Write a text for each prompt, up to ``batch_size`` of them in every step.

        Gives the index of a prompt and a chunk of its text, as they come; the last chunk of a text
        has its ``stats``. When a text ends, the next prompt takes its place. Each text is what
        ``stream`` gives for its prompt alone, whatever else is in the batch: the same tokens at
        temperature 0, and with acceptance ``"coupled"`` at a seed.

        A prompt that is refused, or whose text fails, ends with a chunk that has the finish reason
        ``"error"`` and the ``error``; the others go on.

        Args:
            prompts: As for ``stream``; each is taken when there is a place for it.
            params: For all of the prompts, or a sequence with one for each.
            batch_size: Sequences that caches are kept for, 1 to 64: each takes the memory of
                its context as that fills.
            draft_length: As the Generator's, for all of the prompts or for each; None takes the
                Generator's.
            raw, **overrides: As for ``stream``, for all of the prompts.

        Raises:
            InvalidInputError: At the call, for bad arguments, and for models that take no steps
                of several sequences: other layouts than ``fused``, and the NPU.
            GeneratorBusyError: At the first chunk, while another stream runs.
        """
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
            raise InvalidInputError(f"prompts is {shown(prompts)}; it must be a list of prompts")
        size = check_whole("batch_size", batch_size, 1, LARGEST, f"1 to {LARGEST}")
        lengths = self.draft_length if draft_length is None else draft_length
        all_params, each_params = _for_each("params", params, prompts)
        all_lengths, each_length = _for_each("draft_length", lengths, prompts)
        for entry in all_params:
            self._settings(entry, overrides)
        for length in all_lengths:
            self._draft_length_code(length)
        jobs = (
            partial(self._job, prompt, entry, raw, overrides, length)
            for prompt, entry, length in zip(prompts, each_params, each_length, strict=False)
        )
        if self._batch is None or self._batch.size != size:
            self._batch = None  # so that the other one can have its memory
            context = self._max_context
            drafters = partial(new_drafters, self.target, draft=self.draft, max_context=context)
            self._batch = Batch(self.target, drafters, size=size, max_context=context)
        return self._run_batch(self._batch, jobs)

    def generate_many(
        self,
        prompts: Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        **options: Any,
    ) -> list[Result]:
        """Write a whole text for each prompt; arguments and errors as for ``stream_many``.

        The results are in the order of the prompts. Where one has an ``error``, its text is what
        was written until then.
        """
        prompts = list(prompts)
        chunks: list[list[Chunk]] = [[] for _ in prompts]
        for index, chunk in self.stream_many(prompts, params, **options):
            chunks[index].append(chunk)
        return [Result.from_chunks(parts) for parts in chunks]

    def cancel(self) -> None:
        """Stop the stream or the batch that runs, within a round; from any thread."""
        self._cancel_requested = True
        self._engine.cancel()
        batch = self._batch
        if batch is not None:
            batch.cancel()

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The prompt's tokens, as ``stream`` takes it.

        Texts on a fixed-shape target with a sink begin with one token (``Model.first_token``),
        whose keys and values were computed beforehand: it is put in front of a prompt that does
        not begin with it, whether there is a drafter or not.
        """
        tokens = prompt_tokens(self.target, prompt, raw=raw)
        first = self.target.first_token
        return tokens if first is None or tokens[0] == first else [first, *tokens]

    def _run(
        self, tokens: list[int], options: _core.StreamOptions, text_stream: TextStream
    ) -> Iterator[Chunk]:
        self._acquire()
        try:
            self._cancel_requested = False
            self._engine.start(tokens, options)
            if self._cancel_requested:
                self._engine.cancel()
            self._engine.prefill()
            writer = ChunkWriter(self._engine, text_stream)
            self._stats = writer.figures()
            while not writer.finished:
                chunk = writer.write(self._engine.round())
                self._stats = writer.figures()
                if chunk is not None:
                    yield chunk
        finally:
            self._lock.release()

    def _job(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        raw: bool,
        overrides: Mapping[str, Any],
        draft_length: int | str,
    ) -> Job:
        tokens, options, text_stream = self._prepare(prompt, params, raw, overrides)
        length = self._draft_length_code(draft_length)
        return Job(tokens, options, text_stream, length, self._engine.draft_width)

    def _run_batch(
        self, batch: Batch, jobs: Iterator[Callable[[], Job]]
    ) -> Iterator[tuple[int, Chunk]]:
        self._acquire()
        try:
            self._cancel_requested = False
            ended = Stats()
            self._stats = lambda: ended
            for index, chunk in batch.stream(jobs, lambda: self._cancel_requested):
                if chunk.stats is not None:
                    ended += chunk.stats
                yield index, chunk
        finally:
            self._lock.release()

    def _acquire(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise GeneratorBusyError(
                "this Generator is writing a stream already; close that one (or cancel() it), or "
                "use a second Generator with the same Models"
            )


def _for_each(
    name: str, value: Any, prompts: Iterable[Prompt]
) -> tuple[Sequence[Any], Iterable[Any]]:
    """The values of a setting to check, and the one of each prompt."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value], repeat(value)
    if not isinstance(prompts, Sized) or len(prompts) != len(value):
        raise InvalidInputError(
            f"{name} has {len(value)} entries; it must be one for all prompts, or a sequence with "
            "one for each prompt of a list"
        )
    return value, value
