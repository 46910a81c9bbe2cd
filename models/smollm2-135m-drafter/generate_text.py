"""The target writes its own training text, conversation by conversation.

Each row starts from the chat template's prefix; the target writes the user's
turn, then answers it.  All rows of a wave stand at the same position, so the
KV cache is dense; finished rows are compacted away.  With every token the
target's final hidden state is stored: times the head it gives the target's
exact distribution, so distillation needs no second pass of the target.

A shard is one ``.npz``: ``offsets`` [n + 1], ``tokens`` uint16, ``hidden``
float16 (the state *after* reading the token), ``role`` uint8 (who chose the
*next* token: 0 the template, 1 the user's turn, 2 the answer), and
``temperature`` [n], the one used for the answer (0 = greedy).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from chat_tokenizer import load_tokenizer, user_prefix
from llama_torch import Llama
from torch import Tensor

IM_END = 2
CANDIDATES = 64
TEMPLATE, USER, ANSWER = 0, 1, 2
# (temperature, top-p, share of rows) of the answers.
ANSWER_MIX = (
    (0.0, 1.0, 0.28),
    (0.2, 0.9, 0.30),
    (0.5, 1.0, 0.10),
    (0.7, 1.0, 0.12),
    (1.0, 1.0, 0.20),
)


class Sampler:
    """Samples among the best candidates, whose logits are redone in float32."""

    def __init__(self, head: Tensor) -> None:
        """Keep the head in bfloat16 (to search) and float32 (to score)."""
        self.head = head
        self.head_bf16 = head.bfloat16()

    def __call__(self, hidden: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
        """One token id per row of ``hidden`` ``[rows, hidden]``."""
        ids = (hidden.bfloat16() @ self.head_bf16.T).topk(CANDIDATES).indices
        logits = torch.einsum("rch,rh->rc", self.head[ids], hidden)
        logits, order = logits.sort(descending=True)
        probs = (logits / temperature.clamp(min=1e-4)[:, None]).softmax(-1)
        below = probs.cumsum(-1) - probs
        probs = probs.masked_fill(below >= top_p[:, None], 0.0)
        choice = torch.multinomial(probs, 1)
        return ids.gather(1, order.gather(1, choice)).squeeze(1)


class Conversations:
    """Per-row state of a wave: which turn it is in, and what is forced next."""

    def __init__(self, rows: int, args: argparse.Namespace, forced: dict[str, list[int]]) -> None:
        """Draw every row's sampling settings."""
        shares = torch.tensor([m[2] for m in ANSWER_MIX])
        mix = torch.tensor([m[:2] for m in ANSWER_MIX])[
            torch.multinomial(shares, rows, replacement=True)
        ]
        self.answer_temperature, self.answer_top_p = mix[:, 0], mix[:, 1]
        self.user_temperature = torch.tensor([0.8, 1.0])[torch.randint(2, (rows,))]
        self.second_turn = torch.rand(rows) < args.second_turn
        self.role = [USER] * rows
        self.turn_length = [0] * rows
        self.queue: list[list[int]] = [[] for _ in range(rows)]
        self.user_cap = args.user_tokens
        self.forced = forced

    def settings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Temperature and top-p of the next token of ``rows``."""
        answering = torch.tensor([self.role[r] == ANSWER for r in rows.tolist()])
        temperature = torch.where(
            answering, self.answer_temperature[rows], self.user_temperature[rows]
        )
        return temperature, torch.where(answering, self.answer_top_p[rows], torch.tensor(0.95))

    def advance(self, row: int, sampled: int) -> tuple[int, int, bool]:
        """The row's next token, who chose it, and whether the row is finished."""
        if self.queue[row]:
            return self.queue[row].pop(0), TEMPLATE, False
        role = self.role[row]
        self.turn_length[row] += 1
        if role == USER and self.turn_length[row] >= self.user_cap:
            sampled, chosen_by = IM_END, TEMPLATE
        else:
            chosen_by = role
        if sampled != IM_END:
            return sampled, chosen_by, False
        self.turn_length[row] = 0
        if role == USER:
            self.role[row], self.queue[row] = ANSWER, list(self.forced["assistant"])
            return sampled, chosen_by, False
        if not self.second_turn[row]:
            return sampled, chosen_by, True
        self.second_turn[row] = False
        self.role[row], self.queue[row] = USER, list(self.forced["user"])
        return sampled, chosen_by, False


@torch.inference_mode()
def write_wave(
    model: Llama,
    sampler: Sampler,
    prefix: list[int],
    forced: dict[str, list[int]],
    args: argparse.Namespace,
) -> dict[str, np.ndarray]:
    """Generate one wave of conversations and return it as a shard."""
    rows, capacity, start = args.batch, args.length, len(prefix)
    tokens = torch.zeros(rows, capacity, dtype=torch.long)
    tokens[:, :start] = torch.tensor(prefix)
    hidden = torch.zeros(rows, capacity, model.config.hidden, dtype=torch.float16)
    role = torch.zeros(rows, capacity, dtype=torch.uint8)
    length = torch.full((rows,), capacity)
    state = Conversations(rows, args, forced)

    single = model.new_cache(1, start)
    first = model(torch.tensor([prefix]), single)
    hidden[:, :start] = first.half()
    cache = model.new_cache(rows, capacity)
    for full, one in zip(cache, single, strict=True):
        full[:, :, :, :start] = one
    last = first[:, -1].expand(rows, -1)
    active, done = torch.arange(rows), torch.zeros(rows, dtype=torch.bool)
    for position in range(start, capacity):
        sampled = sampler(last, *state.settings(active)).tolist()
        for row, token in zip(active.tolist(), sampled, strict=True):
            if done[row]:
                continue
            chosen, chosen_by, finished = state.advance(row, token)
            tokens[row, position], role[row, position - 1] = chosen, chosen_by
            if finished:
                length[row], done[row] = position + 1, True
        # Finished rows idle along until enough of the batch can be dropped.
        alive = (~done[active]).nonzero().squeeze(1)
        if len(alive) < args.stop_below:
            length[active[alive]] = position + 1
            break
        if len(alive) < len(active) * 7 // 8:
            active = active[alive]
            cache = [layer[:, alive] for layer in cache]
        last = model(tokens[active, position : position + 1], cache, position)[:, 0]
        hidden[active, position] = last.half()
    return pack(tokens, hidden, role, length, state.answer_temperature)


def pack(
    tokens: Tensor, hidden: Tensor, role: Tensor, length: Tensor, temperature: Tensor
) -> dict[str, np.ndarray]:
    """Concatenate the rows of a wave, each cut to its length."""
    spans = list(enumerate(length.tolist()))
    return {
        "offsets": np.concatenate([[0], np.cumsum(length.numpy())]).astype(np.int64),
        "tokens": np.concatenate([tokens[r, :n].numpy() for r, n in spans]).astype(np.uint16),
        "hidden": np.concatenate([hidden[r, :n].numpy() for r, n in spans]),
        "role": np.concatenate([role[r, :n].numpy() for r, n in spans]),
        "temperature": temperature.numpy(),
    }


def main() -> None:
    """Write shards until the token or time budget is spent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="the target's GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--batch", type=int, default=160)
    parser.add_argument("--length", type=int, default=400, help="tokens of a conversation at most")
    parser.add_argument("--user-tokens", type=int, default=80)
    parser.add_argument("--second-turn", type=float, default=0.3, help="share of two-turn rows")
    parser.add_argument("--stop-below", type=int, default=24, help="rows that end a wave")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid-dir", type=Path, help="touch a file named by the process id here")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    pid_file = args.pid_dir / str(os.getpid()) if args.pid_dir else None
    if pid_file:
        pid_file.touch()

    tokenizer = load_tokenizer(args.target)
    prefix = tokenizer.encode(user_prefix()).ids
    forced = {
        "assistant": tokenizer.encode("\n<|im_start|>assistant\n").ids,
        "user": tokenizer.encode("\n<|im_start|>user\n").ids,
    }
    model = Llama.from_gguf(args.target)
    sampler = Sampler(model.embedding)
    model.cast_linears(torch.bfloat16)
    started, written, shard = time.time(), 0, 0
    try:
        while written < args.tokens and time.time() - started < 60 * args.minutes:
            wave = write_wave(model, sampler, prefix, forced, args)
            part = args.out / f".shard-{args.seed:03d}-{shard:04d}.npz"
            np.savez(part, **wave)
            part.rename(args.out / part.name[1:])
            shard, written = shard + 1, written + len(wave["tokens"])
            print(f"{shard} shards, {written} tokens, {time.time() - started:.0f} s", flush=True)
            print(
                repr(
                    tokenizer.decode(
                        wave["tokens"][: wave["offsets"][1]].tolist(), skip_special_tokens=False
                    )
                ),
                flush=True,
            )
    finally:
        if pid_file:
            pid_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
