"""The text to learn from: shards on disk, the held-out split, batches.

A shard is ``NAME.npz`` with ``offsets`` int64 [n + 1], ``tokens`` uint32 [N], ``role`` uint8 [N]
(who chose the *next* token), and perhaps ``temperature`` float32 [n] and ``kind`` str [n].
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.errors import InvalidInputError

TEMPLATE, USER, ANSWER = 0, 1, 2
HELD_OUT_EVERY = 40
MANIFEST = "manifest.json"
_SORTED_TOGETHER = 256  # conversations of similar length out of so many make a batch


@dataclass(frozen=True, eq=False)
class Conversation:
    """A text that the target wrote, and where it lies."""

    tokens: NDArray[np.uint32]  # [n]
    role: NDArray[np.uint8]  # [n]: who chose the next token
    temperature: float
    kind: str
    shard: str
    """The shard's file name without its suffix."""
    start: int
    """The shard's row of the first token."""

    def __len__(self) -> int:
        return len(self.tokens)

    def chosen(self) -> NDArray[np.bool_]:
        """Positions [n] whose next token the target chose; the last one has none."""
        chosen: NDArray[np.bool_] = self.role != TEMPLATE
        chosen[-1:] = False
        return chosen


@dataclass(frozen=True)
class Corpus:
    """The conversations of a folder of shards, split by conversation."""

    train: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
    shards: tuple[str, ...]

    @classmethod
    def read(
        cls, folder: Path, shards: Sequence[str] | None = None, *, every: int = HELD_OUT_EVERY
    ) -> Corpus:
        """Read ``shards`` (None: all that are there) in the order of their names.

        Of all conversations one in ``every`` is held out. Which ones follows from a hash of their
        tokens, so new shards never move an old conversation, and a repeated one stays on its side.

        Raises:
            InvalidInputError: A shard is missing or damaged, or either side would be empty.
        """
        names = sorted(list_shards(folder) if shards is None else shards)
        train: list[Conversation] = []
        held_out: list[Conversation] = []
        for name in names:
            for item in read_shard(folder / f"{name}.npz"):
                (held_out if is_held_out(item.tokens, every) else train).append(item)
        if not train or not held_out:
            raise InvalidInputError(
                f"{folder}: {len(train) + len(held_out)} conversations are too few to hold out one "
                f"in {every} of them; have the target write more text"
            )
        return cls(tuple(train), tuple(held_out), tuple(names))

    @property
    def tokens(self) -> int:
        """Tokens of the training part."""
        return sum(map(len, self.train))

    def frequencies(self, vocab: int) -> NDArray[np.int64]:
        """How often the target chose each id in the training part, [vocab]."""
        return _count(self.train, vocab)

    def held_out_frequencies(self, vocab: int) -> NDArray[np.int64]:
        """The same of the held-out part."""
        return _count(self.held_out, vocab)


def list_shards(folder: Path) -> list[str]:
    """Names of the complete shards of a folder, sorted.

    Where there is a manifest, those that it names; else all but hidden files, which are being
    written.
    """
    if (listed := read_manifest(folder).get("shards")) is not None:
        return sorted(Path(shard["file"]).stem for shard in listed)
    return sorted(path.stem for path in folder.glob("*.npz") if not path.name.startswith("."))


def read_shard(path: Path) -> list[Conversation]:
    """All conversations of a shard.

    Raises:
        InvalidInputError: It cannot be read, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as shard:
            offsets, tokens, role = (shard[key] for key in ("offsets", "tokens", "role"))
            count = len(offsets) - 1
            temperature = shard["temperature"] if "temperature" in shard else np.zeros(count)
            kinds = shard["kind"] if "kind" in shard else np.full(count, "")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{path}: not a readable shard ({error}); remove it") from error
    if (
        not count == len(temperature) == len(kinds)
        or not len(tokens) == len(role) == offsets[-1]
        or (np.diff(offsets) < 1).any()
    ):
        raise InvalidInputError(f"{path}: its arrays do not fit together; remove it")
    tokens = tokens.astype(np.uint32, copy=False)
    return [
        Conversation(
            tokens[a:b], role[a:b], float(temperature[i]), str(kinds[i]), path.stem, int(a)
        )
        for i, (a, b) in enumerate(pairwise(offsets))
    ]


def is_held_out(tokens: NDArray[np.uint32], every: int = HELD_OUT_EVERY) -> bool:
    """Whether a conversation is for measuring and never for training."""
    digest = hashlib.sha256(tokens.astype("<u4").tobytes()).digest()
    return int.from_bytes(digest[:8], "little") % every == 0


def shard_sha256(path: Path) -> str:
    """SHA-256 of a shard's file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def manifest_sha256(folder: Path) -> str | None:
    """SHA-256 of the folder's manifest; None where there is none."""
    path = folder / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What wrote the text, as its writer tells it; empty where it does not."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: cannot be read ({error})") from error
    return document if isinstance(document, dict) else {}


def epoch_batches(
    items: Sequence[Conversation], batch_tokens: int, seed: int, epoch: int
) -> list[list[Conversation]]:
    """All conversations once, in batches of at most ``batch_tokens`` with padding.

    The order is a function of the arguments alone. A conversation longer than a batch is a batch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(items))
    batches: list[list[Conversation]] = []
    for start in range(0, len(order), _SORTED_TOGETHER):
        chunk = sorted(
            (items[i] for i in order[start : start + _SORTED_TOGETHER]), key=lambda item: len(item)
        )
        batches.append([])
        for item in chunk:  # the longest comes last and gives the batch its width
            if batches[-1] and (len(batches[-1]) + 1) * len(item) > batch_tokens:
                batches.append([])
            batches[-1].append(item)
    return [batches[i] for i in rng.permutation(len(batches))]


def _count(items: Sequence[Conversation], vocab: int) -> NDArray[np.int64]:
    counts = np.zeros(vocab, dtype=np.int64)
    for item in items:
        counts += np.bincount(item.tokens[1:][item.chosen()[:-1]], minlength=vocab)
    return counts
