"""Trains a drafter in many ways at equal tokens: losses, first weights, heads, layers, kinds.

    python -m bench.distill_ablations smollm2-135m --text TEXT --states STATES -o ablations.jsonl

A variant differs from the base (the options' own defaults) in what its name says, and in nothing
else: the text and its order, the held-out conversations, the seed and the fitted first weights are
the same. Each adds a line to the output when it is trained, with the figures on held-out text
before and after; a line that is there already, of the same settings, is not made again, and a
variant that was interrupted goes on where it was. Beside the output lies a table of all of them.

``TEXT`` and ``STATES`` are folders of ``specdec distill``: the text that the target wrote, and its
states of at least the layers that the drafters read. States are only read; without ``--states``
they are computed for each batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from specdec.distill import build
from specdec.distill.corpus import Corpus, list_shards, shard_sha256
from specdec.distill.llama import TorchLlama
from specdec.distill.options import Options
from specdec.distill.progress import read_log
from specdec.distill.run import Run
from specdec.distill.states import StateShape, missing_states
from specdec.distill.target import TargetModel, open_target
from specdec.distill.train import LOG
from specdec.distill.world import World
from specdec.errors import InvalidInputError, SpecdecError

LOSSES = ("reverse_kl", "tvd", "tvd++", "lk", "lk_mix")
AFTER_KL = 0.6
"""The share of a run that is KL alone, in the variants whose loss comes after it."""
LAYERS = ("0, 29", "0, 20, 29", "0, 5, 11, 17, 23, 29")
"""Fewer and more than the base's four; those of SmolLM2-135M."""
WHOLE = -1
"""Instead of a head's rows: all of the target's vocabulary."""


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    groups: tuple[str, ...]
    """The parts of the table that it stands in."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Options, where they are not the base's."""


def variants() -> list[Variant]:
    """The base first; it is what all others are compared with."""
    groups = ("loss", "first weights", "head", "layers", "drafts unrolled", "weights", "kind")
    base = Variant("kl, then lk", groups)
    later = [loss for loss in LOSSES if loss != "lk"]
    return [
        base,
        Variant("kl", ("loss",), {"loss": "kl", "loss_from": 0.0}),
        *(Variant(loss, ("loss",), {"loss": loss, "loss_from": 0.0}) for loss in LOSSES),
        *(Variant(f"kl, then {loss}", ("loss",), {"loss": loss}) for loss in later),
        Variant("random first weights", ("first weights",), {"origin": "random"}),
        *(Variant(f"head of {rows:,}", ("head",), {"head": rows}) for rows in (4096, 16384)),
        Variant("whole head", ("head",), {"head": WHOLE}),
        *(Variant(f"layers {layers}", ("layers",), _layers(layers)) for layers in LAYERS),
        *(Variant(f"{depth} unrolled", (groups[4],), {"depth": depth}) for depth in (1, 3)),
        Variant("4 bits", ("weights",), {"weights": "q4_1"}),
        Variant("standalone", ("kind",), {"kind": "standalone"}),
    ]


def _layers(names: str) -> dict[str, Any]:
    return {"target_layers": tuple(int(name) for name in names.split(", "))}


@dataclass
class Ablations:
    """All that the variants have in common."""

    target: TargetModel
    text: Path
    states: Path | None
    work: Path
    base: Options

    def settings(self, variant: Variant) -> dict[str, Any]:
        """What decides the variant's figures: a line of the output is of one of these."""
        values = self.options(variant).deciding()
        del values["text"], values["initial"]  # where they lie
        return {**values, "target": self.target.sha256, "text": self._text_sha256}

    def folder(self, variant: Variant) -> Path:
        """Where the variant's run lies until its line is written."""
        settings = json.dumps(self.settings(variant), sort_keys=True)
        return self.work / hashlib.sha256(settings.encode()).hexdigest()[:16]

    def options(self, variant: Variant) -> Options:
        """The variant's options, without first weights."""
        changes = dict(variant.changes)
        if changes.get("head") == WHOLE:
            changes["head"] = self.target.source.config.vocab
        options = replace(self.base, **changes)
        options.check()
        return options

    def train(self, variant: Variant) -> dict[str, Any]:
        """Trains the variant; its line of the output.

        Raises InvalidInputError where the states lack layers, or the options do not go together.
        """
        folder = self.folder(variant)
        folder.mkdir(parents=True, exist_ok=True)
        options = self.options(variant)
        self._check_states(options)
        if options.kind == "attached" and options.origin == "target":
            options = replace(options, initial=str(self._fitted(options)))
        run = Run(self.target, folder, options, World(), lambda stage, fraction: None, _say)
        if self.states is not None:
            run.states = self.states
        run.prepare()
        run.train()
        log = read_log(folder / "train" / LOG)
        figures = [entry["held_out"] for entry in log if "held_out" in entry]
        shape = run.architecture
        return {
            "variant": variant.name,
            "settings": self.settings(variant),
            "parameters": shape.parameters,
            "target_layers": list(shape.target_layers or ()),
            "head": run.plan.head,
            "tokens": log[-1]["tokens"],
            "seconds": log[-1]["seconds"],
            "before": figures[0],
            "after": figures[-1],
        }

    @cached_property
    def _text_sha256(self) -> str:
        shards = [shard_sha256(self.text / f"{name}.npz") for name in list_shards(self.text)]
        return hashlib.sha256(" ".join(shards).encode()).hexdigest()

    def _check_states(self, options: Options) -> None:
        """Refuses what would have states made anew in a folder that others read."""
        if self.states is None:
            return
        config, plan = self.target.source.config, build.architecture(self.target, options)
        layers = (plan.target_layers or ()) if plan.kind == "attached" else ()
        shape = StateShape(
            self.target.sha256, config.hidden, layers, config.kv_heads, config.head_dim
        )
        missing = missing_states(self.text, self.states, list_shards(self.text), shape)
        if missing:
            raise InvalidInputError(
                f"{self.states}: has no states of this target and text for layers {list(layers)} "
                f"in {len(missing)} shards, {missing[0]} first; leave --states out"
            )

    def _fitted(self, options: Options) -> Path:
        """The first weights of an attached drafter: fitted once, whatever head and loss."""
        plan = build.architecture(self.target, options)
        shards = list_shards(self.text)
        key = f"{self.target.sha256} {plan.target_layers} {options.seed} {options.dtype} {shards}"
        path = self.work / f"first-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            _say("fitting the first weights")
            self.work.mkdir(parents=True, exist_ok=True)
            source, dtype = self.target.source, build.dtype_of(options)
            device = build.device_of(options)
            corpus = Corpus.read(self.text, shards)
            ids = build.head_ids(plan, corpus, self.target, options)
            student = build.make(plan, source, ids, options)
            model = TorchLlama.from_source(source, dtype=dtype, device=device)
            build.initialise(student, self.target, model, corpus, options)
            build.write_weights(path, student.state_dict())
        return path


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table for each group, the base first."""
    known = {line["variant"]: line for line in lines}
    for group in dict.fromkeys(group for variant in variants() for group in variant.groups):
        rows = [v.name for v in variants() if group in v.groups and v.name in known]
        if not rows:
            continue
        yield from (
            f"| {group} | draft 1 | 2 | 3 | block efficiency | at temperature 0 | before training "
            "| tokens | seconds |",
            f"|---{'|---:' * 8}|",
        )
        for name in rows:
            line = known[name]
            after, before = line["after"], line["before"]
            drafts = " | ".join(f"{share:.3f}" for share in after["acceptance"])
            greedy = after["greedy_block_efficiency"]
            yield (
                f"| {name} | {drafts} | {after['block_efficiency']:.2f} | "
                f"{'-' if greedy is None else f'{greedy:.2f}'} | {before['acceptance'][0]:.3f} | "
                f"{line['tokens']:,} | {line['seconds']:.0f} |"
            )
        yield ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", help="a known model's name, or a GGUF file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--states", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--work", type=Path, help="default: OUTPUT.work")
    parser.add_argument("--tokens", type=int, default=50_000, help="of each variant")
    parser.add_argument("--held-out", type=int, default=40, help="conversations")
    parser.add_argument("--batch-tokens", type=int, default=Options.batch_tokens)
    parser.add_argument("--warmup", type=int, default=Options.warmup)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", action="append", metavar="NAME", help="a variant or a group")
    parser.add_argument("--list", action="store_true", help="say which there are, and stop")
    args = parser.parse_args()
    chosen = variants()
    if args.only:
        chosen = [v for v in chosen if {v.name, *v.groups} & {*args.only}]
    if args.list or not chosen:
        print("\n".join(f"{variant.name}: {', '.join(variant.groups)}" for variant in variants()))
        return 0 if args.list else 2
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    base = Options(
        kind="attached",
        text=str(args.text),
        tokens=args.tokens,
        evaluate_tokens=args.tokens,
        held_out=args.held_out,
        loss_from=AFTER_KL,
        batch_tokens=args.batch_tokens,
        warmup=args.warmup,
        seed=args.seed,
        teacher="online" if args.states is None else "cached",
    )
    work = args.work or args.output.with_name(f"{args.output.name}.work")
    try:
        with open_target(args.target, lambda stage, fraction: None) as target:
            _train_all(Ablations(target, args.text, args.states, work, base), chosen, args.output)
    except SpecdecError as error:
        parser.error(" ".join(str(error).split()))
    return 0


def _train_all(ablations: Ablations, chosen: list[Variant], output: Path) -> None:
    if not list_shards(ablations.text):
        raise InvalidInputError(f"{ablations.text}: holds no text (shards of .npz)")
    wanted = {variant.name: ablations.settings(variant) for variant in variants()}
    for variant in chosen:
        lines = [x for x in read_log(output) if wanted.get(x["variant"]) == x["settings"]]
        if variant.name not in {line["variant"] for line in lines}:
            _say(f"== {variant.name}")
            lines.append(ablations.train(variant))
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
            shutil.rmtree(ablations.folder(variant))
        output.with_suffix(".md").write_text("\n".join(table(lines)), encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
