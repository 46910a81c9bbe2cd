"""``write_text``: the target writes a folder of conversations to train its drafter on."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from specdec.benchmark.prompts import load_prompts
from specdec.convert.chat_templates import load_template
from specdec.convert.checkpoint import ModelSource
from specdec.convert.source import open_source
from specdec.convert.tokenizer_files import write_chat_template
from specdec.distill.write.conversation import Conversation, Prompt
from specdec.distill.write.engine import BatchWriter, open_writer
from specdec.distill.write.options import WriteOptions
from specdec.distill.write.quality import Filter
from specdec.distill.write.shards import Manifest, open_manifest, read_shard, write_shard
from specdec.distill.write.turns import ChatTurns
from specdec.distill.write.wave import write_wave
from specdec.errors import InvalidInputError
from specdec.file_lock import file_lock
from specdec.model_folder import TokenizerSection
from specdec.tokenizer import Tokenizer

_SCRATCH = ".scratch-"
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class WriteProgress:
    """How far the writing is."""

    tokens: int
    """In finished shards, and in the one that is being written (before filtering)."""
    wanted: int
    conversations: int
    """In finished shards."""
    shards: int
    tokens_per_second: float
    """Of this run: what the target read and wrote, dropped conversations included."""
    seconds_left: float | None
    """None: not known yet."""


def write_text(
    target_source: Path,
    folder: Path,
    options: WriteOptions | None = None,
    progress: Callable[[WriteProgress], None] = lambda progress: None,
) -> Manifest:
    """Have the target write conversations into ``folder`` until it holds ``options.tokens``.

    A shard depends on the options, its index and the shards before it, and on nothing else: killed
    at any moment and called again, this goes on after the last whole shard and writes what it would
    have written (on the same machine: products may round otherwise elsewhere). A folder that holds
    enough is left as it is.

    Args:
        target_source: The target: a GGUF file, or a Hugging Face folder.
        folder: Shards and ``manifest.json`` as in ``shards.py``; made if missing. Other callers of
            the same folder wait.
        options: See there.
        progress: Called about twice a second.

    Raises:
        InvalidInputError: An option makes no sense, the target has no chat template, the folder
            was written with other options, or the prompts of a file are used up.
        CheckpointError: The target cannot be read.
    """
    options = options or WriteOptions()
    options.check()
    source = open_source(target_source, None)
    if options.length > source.config.context:
        raise InvalidInputError(
            f"length is {options.length}; the target's context has {source.config.context} tokens"
        )
    prompts = _prompts(options)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock"):
        for leftover in [*folder.glob(f"{_SCRATCH}*"), *folder.glob(".*.partial-*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        with tempfile.TemporaryDirectory(
            prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True
        ) as scratch:
            turns = open_turns(source, options, Path(scratch))
            settings = {
                **options.deciding(),
                "template_sha256": _sha256(turns.template),
                "prompts_sha256": _sha256(*(prompt.text for prompt in prompts)),
            }
            manifest = open_manifest(folder, source.describe(), settings)
            if manifest.tokens < options.tokens:
                writer = open_writer(source, options, Path(scratch))
                _Run(folder, manifest, options, turns, writer, prompts, progress).write()
    return manifest


class _Run:
    """One call of ``write_text``, from the first missing shard on."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        options: WriteOptions,
        turns: ChatTurns,
        writer: BatchWriter,
        prompts: list[Prompt],
        progress: Callable[[WriteProgress], None],
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._options = options
        self._turns = turns
        self._writer = writer
        self._prompts = prompts
        self._progress = progress
        self._filter = Filter()
        self._started = self._reported = time.monotonic()
        self._steps = 0  # tokens of this run
        self._unfinished = 0  # tokens of the shard in progress
        self._kept_before = manifest.tokens

    def write(self) -> None:
        for shard in self._manifest.shards:
            content = read_shard(self._folder / shard.file)
            bounds = content["offsets"].tolist()
            for start, end in pairwise(bounds):
                roles = [0, *content["role"][start : end - 1].tolist()]
                self._filter.remember(content["tokens"][start:end].tolist(), roles)
        # The last token of the prefix is left to the first step, which then gives candidates.
        prefix = self._turns.prefix[:-1]
        self._writer.set_prefix(prefix)
        while self._manifest.tokens < self._options.tokens:
            self._write_shard(prefix)
        self._report()

    def _write_shard(self, prefix: list[int]) -> None:
        index = len(self._manifest.shards)
        conversations = [
            self._conversation(index, number) for number in range(self._options.conversations)
        ]
        self._unfinished = 0
        write_wave(
            self._writer,
            conversations,
            rows=self._options.rows,
            prefix=prefix,
            on_step=self._count,
        )
        kept: list[Conversation] = []
        dropped: Counter[str] = Counter()
        for conversation in conversations:
            if problem := self._filter.problem(conversation):
                dropped[problem] += 1
            else:
                kept.append(conversation)
        if not kept:
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
            raise InvalidInputError(
                f"{self._folder}: nothing of shard {index} is worth keeping ({reasons}); it holds "
                f"{self._manifest.tokens} of {self._options.tokens} tokens: "
                + ("give more prompts" if self._prompts else "is this a chat model?")
            )
        write_shard(self._folder, self._manifest, kept, dropped)
        self._unfinished = 0

    def _conversation(self, shard: int, number: int) -> Conversation:
        prompt = None
        if self._prompts:
            whole = shard * self._options.conversations + number
            prompt = self._prompts[whole % len(self._prompts)]
        random = np.random.default_rng([self._options.seed, shard, number])
        return Conversation(self._turns, self._options, random, prompt)

    def _count(self, tokens: int) -> None:
        self._steps += tokens
        self._unfinished += tokens
        if time.monotonic() - self._reported >= _REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        seconds = self._reported - self._started
        tokens = self._manifest.tokens + self._unfinished
        kept = tokens - self._kept_before
        missing = max(0, self._options.tokens - tokens)
        self._progress(
            WriteProgress(
                tokens=tokens,
                wanted=self._options.tokens,
                conversations=self._manifest.conversations,
                shards=len(self._manifest.shards),
                tokens_per_second=self._steps / seconds if seconds > 0 else 0.0,
                seconds_left=missing * seconds / kept if kept > 0 else None,
            )
        )


def _prompts(options: WriteOptions) -> list[Prompt]:
    if not options.prompts:
        return []
    return [
        Prompt(kind.name, text) for kind in load_prompts(options.prompts) for text in kind.prompts
    ]


def open_turns(source: ModelSource, options: WriteOptions, scratch: Path) -> ChatTurns:
    """The turns of the target; its tokenizer is written into ``scratch`` on the way."""
    written: dict[str, Any] = source.write_tokenizer(scratch)
    if options.chat_template is not None:
        template = load_template(options.chat_template)
        written["chat_template"] = write_chat_template(template, scratch)
    known = {field.name for field in fields(TokenizerSection)}
    section = TokenizerSection(**{k: v for k, v in written.items() if k in known})
    backend = tokenizers.Tokenizer.from_file(str(scratch / section.file))
    tokenizer = Tokenizer(backend, section, vocab=source.config.vocab)
    name = section.chat_template
    return ChatTurns(tokenizer, None if name is None else (scratch / name).read_text("utf-8"))


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()
