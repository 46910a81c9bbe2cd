"""What drafts behind siblings would bring: tokens of a round, for two kinds of trees.

    python -m bench.draft_trees [--kinds chat code] [--prompts 4] [--tokens 56] [--temperature 0]

At each position of texts that the target writes, a large tree of drafts is grown, and each of its
nodes gets the chance that the target accepts it: at temperature 0 whether it is in the text, else
that of recursive rejection (2402.14160), exactly. Rounds are then cut out of these trees: a chain
with siblings that no draft follows, as specdec drafts them, or a tree where drafts follow siblings
too. Both take the nodes that are likeliest to be reached, by what the drafter's probability and the
rank of a candidate have meant on these texts, so both know as much.

Printed are the tokens of a round at equal rows of the target's step, with as many steps of the
drafter as bring most, and the greatest speed over all sizes by the steps' costs, which are measured
first. A step of the drafter counts as one of one row, whatever it has: trees get that for nothing.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec import Generator, Model, _core
from specdec.distill.evaluate.prompts import KINDS, load_kinds

Row = NDArray[np.float64]
CANDIDATES = 6  # of a position
DEEPEST = 8
EXPANDED = 18  # nodes of a tree that candidates follow, beside those of the chain
HOPELESS = 0.004
ROWS = (4, 6, 8, 12)
WIDTHS = (1, 2, 4, 8, 16)  # of the target's steps that are timed
CONTEXT = 1024
EDGES = (0.03, 0.06, 0.1, 0.13, 0.22, 0.33, 0.45, 0.58, 0.72, 0.85, 0.95)


@dataclass
class Node:
    """A draft; or the root, which is the text's last token."""

    token: int
    parent: int = -1
    depth: int = 0
    rank: int = 0  # among the candidates of its position
    sure: float = 1.0  # the drafter's probability of the candidate of this rank
    own: float = 1.0  # the drafter's probability of the token itself
    chain: bool = True  # a first candidate, as all before it
    likely: float = 1.0  # where the tree is to grow
    accepted: float = 1.0  # the chance of it, where its parent is accepted
    reached: float = 1.0  # the chance of it
    children: list[int] = field(default_factory=list)


Tree = list[Node]
Known = tuple[Tree, list[float], list[float]]  # and what Meaning.expected() says of it


def softmax(logits: NDArray[Any], temperature: float) -> Row:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / (temperature or 1.0))
    return np.asarray(weights / weights.sum())


def decoders(target: Model, draft: Model) -> tuple[_core.InPlaceDecoder, _core.AttachedDecoder]:
    decoder = target.new_decoder(capacity=CONTEXT, max_logit_rows=64)
    assert isinstance(decoder, _core.InPlaceDecoder)
    return decoder, draft.new_attached_decoder(decoder, context=CONTEXT)


class Recorder:
    """Writes a text, and grows a tree at each of its positions."""

    def __init__(self, target: Model, draft: Model, prompt: Sequence[int], temperature: float):
        self.temperature = temperature
        self.rng = np.random.default_rng(len(prompt))
        self.target, self.draft = decoders(target, draft)
        ids = draft.head_ids
        self.ids = np.arange(draft.config.vocab) if ids is None else ids
        for begin in range(0, len(prompt) - 1, 64):
            part = prompt[begin : min(begin + 64, len(prompt) - 1)]
            self.target.forward(part, 1)
            self.target.commit(len(part))
        self.last = prompt[-1]

    def record(self, tokens: int) -> list[Tree]:
        text, trees = [], []
        for _ in range(tokens):
            tree, rows = self.grow()
            trees.append(tree)
            self.last = self.check(tree, rows)
            text.append(self.last)
        for position, tree in enumerate(trees):
            for node in tree[1:]:
                if self.temperature == 0:
                    at = position + node.depth - 1
                    node.accepted = float(at < len(text) and text[at] == node.token)
                node.reached = tree[node.parent].reached * node.accepted
        return trees

    def grow(self) -> tuple[Tree, dict[int, Row]]:
        """A tree, and the drafter's distributions behind those of its nodes that have children."""
        tree = [Node(self.last)]
        rows: dict[int, Row] = {}
        chain = 0
        while chain == 0 or (tree[chain].depth < DEEPEST and tree[chain].likely > HOPELESS):
            self.expand(tree, chain, rows)
            chain = tree[chain].children[0]
        for _ in range(EXPANDED):
            open_ = [i for i, n in enumerate(tree) if i not in rows and n.depth < DEEPEST]
            best = max(open_, key=lambda i: tree[i].likely, default=0)
            if best == 0 or tree[best].likely < HOPELESS:
                break
            self.expand(tree, best, rows)
        return tree, rows

    def expand(self, tree: Tree, at: int, rows: dict[int, Row]) -> None:
        path = []
        node = at
        while node >= 0:
            path.append(tree[node].token)
            node = tree[node].parent
        assert self.draft.follow(self.target.length)
        for token in reversed(path):
            logits = self.draft.forward([token], 1)[0]
            self.draft.commit(1)
        q = rows[at] = softmax(logits, self.temperature)
        best = np.argsort(-q)[:CANDIDATES]
        drawn = best if self.temperature == 0 else self.draw(q)
        for rank, index in enumerate(drawn):
            parent = tree[at]
            likely = q[index] if self.temperature == 0 else min(1, q[index] + 0.1) * 0.7**rank
            parent.children.append(len(tree))
            tree.append(
                Node(
                    int(self.ids[index]), at, parent.depth + 1, rank, float(q[best[rank]]),
                    float(q[index]), parent.chain and rank == 0, parent.likely * float(likely),
                )
            )  # fmt: skip

    def draw(self, q: Row) -> list[int]:
        rest = q.copy()
        drawn: list[int] = []
        while len(drawn) < CANDIDATES and rest.sum() > 1e-9:
            drawn.append(int(self.rng.choice(len(q), p=rest / rest.sum())))
            rest[drawn[-1]] = 0
        return drawn

    def check(self, tree: Tree, rows: dict[int, Row]) -> int:
        """Runs the target, says what it accepts where it samples, and gives the next token."""
        order = sorted(rows)
        place = {node: row for row, node in enumerate(order)}
        parents = [-1, *(place[tree[i].parent] for i in order[1:])]
        logits = self.target.forward([tree[i].token for i in order], len(order), parents=parents)
        if self.temperature == 0:
            following = int(logits[0].argmax())
        else:
            for row, node in enumerate(order):
                p = softmax(logits[row], self.temperature)
                chances = recursive_rejection(p, rows[node], self.ids, tree, node)
                for child, chance in zip(tree[node].children, chances, strict=True):
                    tree[child].accepted = chance
            p = softmax(logits[0], self.temperature)
            following = int(self.rng.choice(len(p), p=p))
        self.target.commit(1)
        return following


def recursive_rejection(p: Row, q: Row, ids: NDArray[Any], tree: Tree, node: int) -> list[float]:
    """The chance of each child, given what all of them are."""
    rest, left, missing = p.copy(), 1.0, q.copy()
    index = {int(token): i for i, token in enumerate(ids)}
    chances = []
    for child in tree[node].children:
        token = tree[child].token
        if left <= 0 or rest.sum() <= 0:
            chances.append(0.0)
            continue
        target, draft = rest / rest.sum(), missing / missing.sum()
        chance = min(1.0, target[token] / draft[index[token]])
        chances.append(left * chance)
        left *= 1 - chance
        rest = target.copy()
        rest[ids] = np.maximum(target[ids] - draft, 0)
        missing[index[token]] = 0
    return chances


class Meaning:
    """What came of candidates of a rank and a probability."""

    def __init__(self, trees: list[Tree]):
        self.seen: dict[tuple[str, int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for tree in trees:
            for node in tree[1:]:
                reached = tree[node.parent].reached
                for name, sure in (("sure", node.sure), ("own", node.own)):
                    seen = self.seen[self.key(name, node, sure)]
                    seen[0] += reached * node.accepted
                    seen[1] += reached

    def key(self, name: str, node: Node, sure: float) -> tuple[str, int, int]:
        return name, min(node.rank, 3), bisect(EDGES, sure)

    def seen_share(self, name: str, node: Node) -> float:
        sure = node.sure if name == "sure" else node.own
        happened, count = self.seen[self.key(name, node, sure)]
        return (happened + 2 * sure) / (count + 2)

    def expected(self, tree: Tree) -> tuple[list[float], list[float]]:
        """The chance to be reached, as it counts for checking a node, and for drafting behind it.

        Where drafts are drawn, whether one is checked may not hang on what it is; what follows it
        may.
        """
        check, follow = [1.0], [1.0]
        for node in tree[1:]:
            check.append(follow[node.parent] * self.seen_share("sure", node))
            follow.append(follow[node.parent] * self.seen_share("own", node))
        return check, follow


@dataclass(frozen=True)
class Shape:
    """How rounds are cut out of trees."""

    rows: int  # of the target's step, at most
    steps: int  # of the drafter, at most
    frontier: int = 1  # nodes that one of those goes on from
    chain: bool = False  # whether drafts follow first candidates alone
    worth: float = 0.0  # least chance of a node that is checked
    go_on: float = 0.0  # least sum of chances of a frontier


def cut(tree: Tree, check: list[float], follow: list[float], shape: Shape) -> tuple[set[int], int]:
    """The nodes that are checked, the root included, and the drafter's steps."""
    pool = list(tree[0].children)
    expanded = {0}
    steps = 1

    def chosen() -> set[int]:
        nodes = {0}
        for i in sorted(pool, key=lambda i: -check[i]):
            if len(nodes) >= shape.rows or check[i] < shape.worth:
                break
            if tree[i].parent in nodes:
                nodes.add(i)
        return nodes

    nodes = chosen()
    while steps < shape.steps:
        ends = [i for i in nodes if i not in expanded and tree[i].children]
        ends = [i for i in ends if tree[i].chain or not shape.chain]
        ends = sorted(ends, key=lambda i: -follow[i])[: shape.frontier]
        if not ends or sum(follow[i] for i in ends) < shape.go_on:
            break
        expanded.update(ends)
        for i in ends:
            pool += tree[i].children
        steps += 1
        nodes = chosen()
    return nodes, steps


@dataclass(frozen=True)
class Costs:
    """Seconds of steps."""

    widths: dict[int, float]
    draft: float

    def target(self, rows: int) -> float:
        return float(np.interp(rows, list(self.widths), list(self.widths.values())))


@dataclass(frozen=True)
class Mean:
    """Of a round."""

    tokens: float
    rows: float
    steps: float
    speed: float  # tokens a second


def measure(known: list[Known], costs: Costs, shape: Shape) -> Mean:
    tokens = rows = steps = seconds = 0.0
    for tree, check, follow in known:
        nodes, ran = cut(tree, check, follow, shape)
        tokens += sum(tree[i].reached for i in nodes)
        rows += len(nodes)
        steps += ran
        seconds += costs.target(len(nodes)) + ran * costs.draft
    count = len(known)
    return Mean(tokens / count, rows / count, steps / count, tokens / seconds)


def time_steps(target: Model, draft: Model) -> Costs:
    decoder, drafter = decoders(target, draft)
    decoder.forward(list(range(100, 164)), 1)
    decoder.commit(64)
    taken: dict[int, list[float]] = defaultdict(list)

    def timed(key: int, work: Callable[[], Any]) -> None:
        before = time.perf_counter()
        work()
        taken[key].append(time.perf_counter() - before)

    for _ in range(60):
        for width in WIDTHS:
            decoder.forward([500], 1)
            decoder.commit(1)
            drafter.follow(decoder.length)
            timed(0, partial(drafter.forward, [500], 1))
            decoder.truncate(64)
            timed(width, partial(decoder.forward, [500] * width, width))
    return Costs({width: median(taken[width]) for width in WIDTHS}, median(taken[0]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--draft", default="smollm2-135m-drafter")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["chat", "code"])
    parser.add_argument("--prompts", type=int, default=4, help="of each kind")
    parser.add_argument("--tokens", type=int, default=56, help="of each text")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--flat", action="store_true", help="every target step costs as of one row")
    options = parser.parse_args(arguments)
    target = Model.load(options.target, threads=options.threads)
    draft = Model.load(options.draft, threads=options.threads)
    costs = time_steps(target, draft)
    if options.flat:
        costs = Costs(dict.fromkeys(WIDTHS, costs.target(1)), costs.draft)
    generator = Generator(target, max_context=CONTEXT)
    trees: list[Tree] = []
    for kind in load_kinds(options.kinds, options.prompts):
        for prompt in kind.prompts:
            tokens = generator.encode(prompt)
            if len(tokens) + options.tokens + 64 > CONTEXT:
                continue
            texts = Recorder(target, draft, tokens, options.temperature).record(options.tokens)
            trees += texts[: -DEEPEST or None]  # at their end nothing is known of deep drafts
    report(trees, costs)


def report(trees: list[Tree], costs: Costs) -> None:
    meaning = Meaning(trees)
    known = [(tree, *meaning.expected(tree)) for tree in trees]
    shown = ", ".join(f"{1e3 * seconds:.2f} at {n}" for n, seconds in costs.widths.items())
    print(f"{len(trees)} positions; ms of a step: target {shown}; drafter {1e3 * costs.draft:.2f}")
    kinds: dict[str, tuple[bool, int]] = {
        "chain and siblings": (True, 1),
        "tree, 2 rows a step": (False, 2),
        "tree, 4 rows a step": (False, 4),
    }
    for name, (chain, frontier) in kinds.items():
        cells = []
        for rows in ROWS:
            means = [
                measure(known, costs, Shape(rows, steps, frontier, chain))
                for steps in range(1, DEEPEST + 1)
            ]
            best = max(means, key=lambda mean: mean.tokens)
            cells.append(f"{rows} rows {best.tokens:.3f} ({best.steps:.1f} steps)")
        fastest = max(
            (
                measure(known, costs, Shape(24, DEEPEST, frontier, chain, *bars))
                for bars in product((0.05, 0.08, 0.11, 0.15, 0.2), (0.1, 0.2, 0.3, 0.4, 0.6))
            ),
            key=lambda mean: mean.speed,
        )
        print(
            f"{name}: {', '.join(cells)}; fastest {fastest.speed:.0f} tokens/s with "
            f"{fastest.tokens:.3f} tokens, {fastest.rows:.1f} rows, {fastest.steps:.1f} steps"
        )


if __name__ == "__main__":
    main()
