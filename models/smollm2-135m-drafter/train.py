"""Distils a drafter out of a few of the target's layers.

The student starts as some of the target's layers, keeps the target's embedding
and head rows frozen, and learns the target's next-token distribution on text
the target wrote.  The loss runs over the trimmed head with the target's
distribution renormalised to it: KL divergence, mixed towards the end with
``-log(sum(min(p, q)))``, the log of the acceptance itself.

With ``torchrun`` every process takes its own batches and gradients are averaged
(single-threaded processes suffer less than threads on a busy machine).

The schedule is in wall-clock minutes.  A checkpoint holds all state; starting
again with the same ``--work`` folder resumes exactly where it was written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from distill_data import USER, Batch, Corpus, collate, epoch_batches
from evaluate import Evaluator
from export_gguf import write_drafter
from llama_torch import Llama
from torch import Tensor

CHUNK = 512


class HeadLoss(torch.autograd.Function):
    """Distillation loss of hidden states, chunked so that logits stay small.

    The gradient is formed together with the loss, so no logits are kept.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        student: Tensor,
        teacher: Tensor,
        head: Tensor,
        weight: Tensor,
        mix: float,
    ) -> tuple[Tensor, Tensor]:
        """Weighted mean of the loss, and of the acceptance ``sum(min(p, q))``."""
        weight = weight / weight.sum()
        grad = torch.empty_like(student)
        loss = student.new_zeros(())
        overlap = student.new_zeros(())
        for rows in torch.arange(len(student)).split(CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            w = weight[part]
            log_p = (teacher[part].to(head.dtype) @ head.T).float().log_softmax(-1)
            log_q = (student[part].to(head.dtype) @ head.T).float().log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            kl = (p * log_p.sub_(log_q)).sum(-1)
            accept = torch.minimum(p, q).sum(-1)
            below = q * (q < p)
            slope = q - p
            if mix > 0.0:
                pull = (q * below.sum(-1, keepdim=True)).sub_(below)
                slope = slope.mul_(1 - mix).add_(pull.mul_((mix / accept.clamp(min=0.05))[:, None]))
            grad[part] = (slope.mul_(w[:, None]).to(head.dtype) @ head).to(grad.dtype)
            loss += ((1 - mix) * kl - mix * accept.clamp(min=1e-6).log()) @ w
            overlap += accept @ w
        ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(overlap)
        return loss, overlap

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, loss_grad: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Hand back the gradient formed in the forward pass."""
        (grad,) = ctx.saved_tensors
        return grad * loss_grad, None, None, None, None


def batch_loss(
    model: Llama, batch: Batch, head: Tensor, args: argparse.Namespace, mix: float
) -> tuple[Tensor, Tensor]:
    """The loss of one batch and its acceptance."""
    student = model(batch.ids).flatten(0, 1)[batch.positions]
    weight = torch.where(batch.role == USER, args.user_weight, 1.0)
    loss, overlap = HeadLoss.apply(student, batch.hidden, head, weight, mix)
    if args.hidden_weight:
        teacher = batch.hidden.float()
        error = (student - teacher).square().sum(-1) / teacher.square().sum(-1)
        loss = loss + args.hidden_weight * (error @ weight) / weight.sum()
    return loss, overlap


def make_optimizers(model: Llama, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices and AdamW for the norms."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    adam = {"lr": args.lr, "betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(matrices + vectors, **adam)]
    muon = torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(vectors, **adam)]


class Trainer:
    """The student, its optimizers and how far training has come."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start from the cut layers, another run's weights, or a checkpoint."""
        self.args = args
        self.rank, self.world = 0, int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            dist.init_process_group("gloo")
            self.rank = dist.get_rank()
        self.checkpoint = args.work / "checkpoint.pt"
        self.corpus = Corpus(args.data)
        self.progress = {"step": 0, "tokens": 0, "epoch": 0, "batch": 0, "seconds": 0.0}
        state = torch.load(self.checkpoint) if self.checkpoint.exists() else None
        self.layers = state["layers"] if state else args.layers
        self.model = Llama.from_gguf(args.target, self.layers)
        self.model.set_compute_dtype(torch.bfloat16)
        if state is None and args.init:
            self.model.load_state_dict(torch.load(args.init)["model"])
        self.optimizers = make_optimizers(self.model, args)
        vocab = self.model.config.vocab
        if state:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.progress = {key: state[key] for key in self.progress}
            self.head_ids = state["head_ids"]
        else:
            self.head_ids = torch.from_numpy(self.corpus.head_ids(vocab, args.head_size)).long()
        self.head = self.model.embedding[self.head_ids].bfloat16()
        counts = torch.from_numpy(self.corpus.frequencies(vocab))[self.head_ids]
        self.by_frequency = counts.argsort(descending=True)
        self.evaluator = Evaluator(
            self.corpus.held_out[: args.eval_conversations], self.model.embedding, self.head_ids
        )
        self.log = (args.work / "log.jsonl").open("a")
        self.write_log(
            settings={k: str(v) for k, v in vars(args).items()},
            train_conversations=len(self.corpus.train),
            held_out_conversations=len(self.corpus.held_out),
            head_coverage=round(self.corpus.coverage(self.head_ids.numpy(), vocab), 5),
        )

    def write_log(self, **entry: object) -> None:
        """One line of the log, also printed, by the first process."""
        if self.rank:
            return
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **entry})
        print(line, flush=True)
        print(line, file=self.log, flush=True)

    def save(self) -> None:
        """Write the checkpoint and the drafter made of it, aside and renamed."""
        if self.rank:
            return
        part = self.checkpoint.with_suffix(".part")
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.model.state_dict(), "optimizers": optimizers, **self.progress}
        torch.save({**state, "layers": self.layers, "head_ids": self.head_ids}, part)
        part.rename(self.checkpoint)
        write_drafter(self.args.work / "drafter.gguf", self.model, self.head_ids.numpy())

    def evaluate(self) -> None:
        """Log the held-out figures."""
        if self.rank:
            return
        figures = self.evaluator(self.model)
        self.write_log(**self.progress | {"seconds": round(self.progress["seconds"])}, **figures)

    def shared(self, value: float) -> float:
        """The first process's value, in every process."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(box, 0)
        return box.item()

    def average_gradients(self) -> None:
        """Average the gradients over the processes."""
        if self.world == 1:
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.world
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def loss_head(self, batch: Batch, done: float) -> Tensor:
        """Head rows of this step's loss.

        Until the overlap phase a sample of the head is enough: its most
        frequent half, random others, and every token that does follow.
        """
        size = self.args.head_sample
        if not size or done >= self.args.overlap_from:
            return self.head
        follows = batch.ids.flatten()[batch.positions + 1]
        index = torch.searchsorted(self.head_ids, follows).clamp(max=len(self.head_ids) - 1)
        index = index[self.head_ids[index] == follows]
        common, others = self.by_frequency.split([size // 2, len(self.head_ids) - size // 2])
        seed = self.args.seed * 1_000_003 + self.progress["step"]
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
        chosen = torch.cat([common, others[order[: size // 2]], index])
        return self.head[chosen.unique()]

    def step(self, batch: Batch, done: float) -> tuple[float, float]:
        """One optimizer step at ``done`` (0 to 1) of the budget."""
        args, step = self.args, self.progress["step"]
        rate = min(1.0, (step + 1) / args.warmup) * max(0.02, (1 + math.cos(math.pi * done)) / 2)
        ramp = (done - args.overlap_from) / max(1e-6, 1 - args.overlap_from)
        mix = args.overlap_mix * min(1.0, max(0.0, 2 * ramp))
        loss, overlap = batch_loss(self.model, batch, self.loss_head(batch, done), args, mix)
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), overlap.item()

    def run(self) -> None:
        """Train until the budget is spent."""
        args, at = self.args, self.progress
        started = time.time() - at["seconds"]
        next_eval = next_save = at["seconds"]
        recent: list[tuple[float, float]] = []
        while True:
            batches = list(
                epoch_batches(self.corpus.train, args.batch_tokens, args.seed + at["epoch"])
            )
            for index in range(len(batches) // self.world):
                if index < at["batch"]:
                    continue
                at["seconds"] = self.shared(time.time() - started)
                done = at["seconds"] / (60 * args.minutes)
                if at["seconds"] >= next_eval or done >= 1:
                    self.evaluate()
                    next_eval = at["seconds"] + 60 * args.eval_minutes
                if at["seconds"] >= next_save or done >= 1:
                    self.save()
                    next_save = at["seconds"] + 60 * args.save_minutes
                if done >= 1:
                    return
                group = batches[index * self.world : (index + 1) * self.world]
                recent.append(self.step(collate(group[self.rank]), done))
                at["step"] += 1
                at["batch"] = index + 1
                at["tokens"] += sum(len(item.tokens) for items in group for item in items)
                if at["step"] % 20 == 0:
                    loss, overlap = (
                        round(sum(x) / len(recent), 4) for x in zip(*recent, strict=True)
                    )
                    self.write_log(
                        step=at["step"],
                        tokens=at["tokens"],
                        epoch=at["epoch"],
                        seconds=round(time.time() - started),
                        loss=loss,
                        accept=overlap,
                    )
                    recent = []
            at["epoch"] += 1
            at["batch"] = 0
            if args.reload:
                self.corpus = Corpus(args.data)


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="the target's GGUF file")
    parser.add_argument("--data", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--work", type=Path, required=True, help="checkpoint and log go here")
    parser.add_argument("--minutes", type=float, required=True, help="wall-clock budget")
    parser.add_argument("--init", type=Path, help="another run's checkpoint to start from")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 1, 15, 29])
    parser.add_argument("--head-size", type=int, default=8192)
    parser.add_argument("--head-sample", type=int, default=0, help="head rows of early steps")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--warmup", type=int, default=20, help="optimizer steps")
    parser.add_argument("--batch-tokens", type=int, default=1280)
    parser.add_argument("--user-weight", type=float, default=0.3, help="loss weight of user turns")
    parser.add_argument("--hidden-weight", type=float, default=0.0, help="hidden-state regression")
    parser.add_argument(
        "--overlap-mix", type=float, default=0.7, help="final share of the log-acceptance loss"
    )
    parser.add_argument(
        "--overlap-from", type=float, default=0.6, help="where in the budget it begins"
    )
    parser.add_argument("--eval-minutes", type=float, default=5)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--eval-conversations", type=int, default=64)
    parser.add_argument("--reload", action="store_true", help="look for new shards every epoch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid-dir", type=Path, help="touch a file named by the process id here")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    pid_file = args.pid_dir / str(os.getpid()) if args.pid_dir else None
    if pid_file:
        pid_file.touch()
    try:
        Trainer(args).run()
    finally:
        if pid_file:
            pid_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
