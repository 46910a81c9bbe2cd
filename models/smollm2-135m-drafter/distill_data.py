"""The training text: shards, the held-out split, batches and the trimmed head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TEMPLATE, USER, ANSWER = 0, 1, 2
HELD_OUT_EVERY = 40
SPECIAL_IDS = (0, 1, 2)


@dataclass(frozen=True)
class Conversation:
    """One conversation: its tokens and what the target computed after each."""

    tokens: np.ndarray
    hidden: np.ndarray
    role: np.ndarray
    temperature: float


@dataclass(frozen=True)
class Batch:
    """Padded tokens, and the flat positions whose next token the target chose."""

    ids: Tensor
    positions: Tensor
    hidden: Tensor
    role: Tensor


class Corpus:
    """All conversations of a folder of shards, split by conversation."""

    def __init__(self, folder: Path) -> None:
        """Read every complete shard."""
        self.train: list[Conversation] = []
        self.held_out: list[Conversation] = []
        for path in sorted(folder.glob("shard-*.npz")):
            shard = dict(np.load(path))
            offsets = shard["offsets"]
            for i, (a, b) in enumerate(pairwise(offsets)):
                part = self.held_out if i % HELD_OUT_EVERY == 0 else self.train
                part.append(
                    Conversation(
                        shard["tokens"][a:b],
                        shard["hidden"][a:b],
                        shard["role"][a:b],
                        float(shard["temperature"][i]),
                    )
                )

    def frequencies(self, vocab: int) -> np.ndarray:
        """How often each id follows in the training part, template excluded."""
        counts = np.zeros(vocab, dtype=np.int64)
        for item in self.train:
            counts += next_token_counts(item, vocab)
        return counts

    def head_ids(self, vocab: int, size: int) -> np.ndarray:
        """The ``size`` most frequent ids in ascending order, specials included."""
        counts = self.frequencies(vocab)
        counts[list(SPECIAL_IDS)] = counts.max() + 1
        return np.sort(np.argsort(-counts, kind="stable")[:size]).astype(np.int32)

    def coverage(self, head_ids: np.ndarray, vocab: int) -> float:
        """Share of the held-out part's next tokens that are in the head."""
        counts = np.zeros(vocab, dtype=np.int64)
        for item in self.held_out:
            counts += next_token_counts(item, vocab)
        return float(counts[head_ids].sum() / counts.sum())


def next_token_counts(item: Conversation, vocab: int) -> np.ndarray:
    """Counts of the ids the target chose in one conversation."""
    chosen = item.tokens[1:][item.role[:-1] != TEMPLATE]
    return np.bincount(chosen, minlength=vocab)


def collate(items: list[Conversation]) -> Batch:
    """Pad conversations to one length and gather the target's hidden states."""
    width = max(len(item.tokens) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    positions, hidden, role = [], [], []
    for row, item in enumerate(items):
        ids[row, : len(item.tokens)] = torch.from_numpy(item.tokens.astype(np.int64))
        chosen = np.flatnonzero(item.role != TEMPLATE)
        positions.append(chosen + row * width)
        hidden.append(item.hidden[chosen])
        role.append(item.role[chosen])
    return Batch(
        ids,
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(hidden)),
        torch.from_numpy(np.concatenate(role)),
    )


def epoch_batches(
    items: list[Conversation], batch_tokens: int, seed: int
) -> Iterator[list[Conversation]]:
    """Shuffled batches of conversations of similar length."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(items))
    batches: list[list[int]] = []
    for start in range(0, len(order), 512):
        chunk = sorted(order[start : start + 512], key=lambda i: len(items[i].tokens))
        batch: list[int] = []
        for i in chunk:
            if batch and (len(batch) + 1) * len(items[i].tokens) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(i)
        batches.append(batch)
    for i in rng.permutation(len(batches)):
        yield [items[j] for j in batches[i]]
