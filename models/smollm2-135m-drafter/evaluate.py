"""Held-out figures of a drafter: how much of the target's text it would win.

Everything is teacher-forced on text the target wrote; the target's
distribution comes from its stored hidden states and its full head.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from distill_data import ANSWER, Batch, Conversation, Corpus, collate
from export_gguf import load_drafter
from llama_torch import Llama
from torch import Tensor


def warp(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Probabilities after temperature and nucleus truncation."""
    probs = (logits / temperature).softmax(-1)
    if top_p < 1.0:
        ranked, order = probs.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
        probs /= probs.sum(-1, keepdim=True)
    return probs


def block_efficiency(matches: list[bool], k: int) -> tuple[int, int]:
    """Tokens and target steps of greedy speculation over one answer."""
    position = blocks = 0
    while position < len(matches):
        accepted = 0
        while accepted < k and position + accepted < len(matches) and matches[position + accepted]:
            accepted += 1
        position += accepted + 1
        blocks += 1
    return min(position, len(matches)), blocks


class Evaluator:
    """Measures a student on the held-out conversations."""

    def __init__(self, items: list[Conversation], embedding: Tensor, head_ids: Tensor) -> None:
        """Keep the conversations in batches of similar length."""
        items = sorted(items, key=lambda item: len(item.tokens))
        self.groups = [items[i : i + 8] for i in range(0, len(items), 8)]
        self.embedding, self.head_ids = embedding, head_ids

    @torch.inference_mode()
    def __call__(self, model: Llama, *, sampled: bool = False, k: int = 4) -> dict[str, float]:
        """Acceptance (answers only) at T=1, top-1 agreement, block efficiency.

        ``sampled`` adds the acceptance at temperature 0.2, with and without
        top-p 0.9.
        """
        head = self.embedding[self.head_ids]
        settings = {"accept_t1": (1.0, 1.0)}
        if sampled:
            settings |= {"accept_t0.2": (0.2, 1.0), "accept_t0.2_p0.9": (0.2, 0.9)}
        sums = dict.fromkeys((*settings, "top1"), 0.0)
        count = tokens = blocks = 0
        for group in self.groups:
            batch: Batch = collate(group)
            student = model(batch.ids).flatten(0, 1)[batch.positions].float()
            answer = batch.role == ANSWER
            for piece in answer.nonzero().squeeze(1).split(512):
                full = batch.hidden[piece].float() @ self.embedding.T
                small = student[piece] @ head.T
                agree = self.head_ids[small.argmax(-1)] == full.argmax(-1)
                sums["top1"] += float(agree.sum())
                for name, (temperature, top_p) in settings.items():
                    p = warp(full, temperature, top_p)[:, self.head_ids]
                    q = warp(small, temperature, top_p)
                    sums[name] += float(torch.minimum(p, q).sum())
                count += len(piece)
            guess = self.head_ids[(student @ head.T).argmax(-1)]
            for row, item in enumerate(group):
                chosen = (batch.positions // batch.ids.shape[1] == row) & answer
                if item.temperature == 0.0:
                    truth = batch.ids.flatten()[batch.positions[chosen] + 1]
                    won, steps = block_efficiency((guess[chosen] == truth).tolist(), k)
                    tokens, blocks = tokens + won, blocks + steps
        figures = {name: round(total / count, 4) for name, total in sums.items()}
        figures[f"greedy_block_efficiency_k{k}"] = round(tokens / max(blocks, 1), 3)
        return figures | {"answer_tokens": count, "greedy_tokens": tokens}


def main() -> None:
    """Evaluate a drafter's GGUF file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="the target's GGUF file")
    parser.add_argument("--drafter", type=Path, required=True, help="the drafter's GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--conversations", type=int, default=10**9)
    args = parser.parse_args()
    model, head_ids = load_drafter(args.drafter, args.target)
    corpus = Corpus(args.data)
    evaluator = Evaluator(corpus.held_out[: args.conversations], model.embedding, head_ids)
    figures = evaluator(model, sampled=True)
    figures["head_coverage"] = corpus.coverage(head_ids.numpy(), model.config.vocab)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
