"""Text on disk, its split, its batches, and what a student may be measured on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from specdec.distill.batches import rows_of, run_lengths, total_weight
from specdec.distill.corpus import (
    Conversation,
    Corpus,
    epoch_batches,
    is_held_out,
    list_shards,
    read_shard,
)
from specdec.distill.held_out import greedy_rounds
from specdec.errors import InvalidInputError
from tests.distill.runs import EVERY, write_shard


def conversation(roles: list[int], *, temperature: float = 1.0) -> Conversation:
    tokens = np.arange(len(roles), dtype=np.uint32)
    return Conversation(tokens, np.array(roles, np.uint8), temperature, "chat", "shard", 0)


def test_what_is_held_out_does_not_depend_on_other_text(tmp_path: Path) -> None:
    write_shard(tmp_path, "b", seed=1)
    before = {item.tokens.tobytes() for item in Corpus.read(tmp_path, every=EVERY).held_out}
    write_shard(tmp_path, "a", seed=2)
    write_shard(tmp_path, "c", seed=1)  # the same conversations once more
    corpus = Corpus.read(tmp_path, every=EVERY)
    after = {item.tokens.tobytes() for item in corpus.held_out}
    assert before < after
    assert not after & {item.tokens.tobytes() for item in corpus.train}
    assert corpus.shards == ("a", "b", "c")
    assert len(corpus.train) + len(corpus.held_out) == 72


def test_one_in_forty_is_held_out() -> None:
    rng = np.random.default_rng(0)
    held = sum(is_held_out(rng.integers(0, 300, 20).astype(np.uint32)) for _ in range(20_000))
    assert 400 < held < 600


def test_batches_hold_every_conversation_once(tmp_path: Path) -> None:
    items = read_shard(write_shard(tmp_path, "a", seed=0, conversations=600))
    epochs = [epoch_batches(items, 200, 1, epoch) for epoch in (0, 0, 1)]
    orders = [[id(item) for batch in batches for item in batch] for batches in epochs]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(map(id, items))
    assert all(len(batch) * max(map(len, batch)) <= 200 for batch in epochs[0])


def test_a_conversation_longer_than_a_batch_is_one() -> None:
    items = [conversation([2] * length) for length in (300, 10, 20)]
    batches = epoch_batches(items, 100, 0, 0)
    assert sorted(sorted(map(len, batch)) for batch in batches) == [[10, 20], [300]]


def test_only_what_the_target_chose_counts() -> None:
    item = conversation([0, 0, 1, 2, 2, 0, 2, 2])
    corpus = Corpus((item,), (item,), ("shard",))
    # The role is that of who chose the next token; after the last there is none.
    assert corpus.frequencies(8).tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert run_lengths(item.chosen()).tolist() == [0, 0, 1, 2, 3, 0, 1, 0]


def test_rows_of_a_padded_batch() -> None:
    items = [conversation([0, 1, 2, 0]), conversation([0, 0, 2, 2, 2, 0])]
    rows = rows_of(items)
    assert rows.position.tolist() == [1, 2, 8, 9, 10]  # six columns
    assert rows.index.tolist() == [1, 2, 2, 3, 4]
    assert rows.run.tolist() == [1, 2, 1, 2, 3]
    weight = rows.weight(0.25)
    assert weight.tolist() == [0.25, 1, 1, 1, 1]
    for skip in (0, 2, 3):
        kept = rows.index >= skip
        assert total_weight(items, 0.25, skip) == pytest.approx(weight[kept].sum().item())
    assert torch.equal(rows.reached(2), torch.tensor([False, False, False, False, True]))


def test_greedy_rounds() -> None:
    agree = np.array([[1, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]], bool)
    # Round 1: places 0 (right), 1 as second draft (right), and the target's own: 3 tokens.
    # Round 2 from place 3: 3 as first and 4 as second are right: 3 more, and the text ends.
    assert greedy_rounds(agree) == (6, 2)
    assert greedy_rounds(np.zeros((3, 4), bool)) == (4, 4)
    assert greedy_rounds(np.ones((3, 9), bool)) == (9, 3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def without_roles(path: Path) -> None:
    np.savez(path, offsets=np.array([0, 2]), tokens=np.zeros(2, np.uint32))


def unequal(path: Path) -> None:
    np.savez(path, offsets=np.array([0, 2]), tokens=np.zeros(2), role=np.zeros(3))


def with_nothing(path: Path) -> None:
    empty = np.zeros(0, np.uint32)
    np.savez(path, offsets=np.array([0, 0]), tokens=empty, role=empty)


@pytest.mark.parametrize("harm", [cut, without_roles, unequal, with_nothing, Path.unlink])
def test_a_damaged_shard(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    write_shard(tmp_path, "a", seed=0)
    harm(write_shard(tmp_path, "b", seed=1))
    with pytest.raises(InvalidInputError, match=r"b\.npz.*remove it"):
        Corpus.read(tmp_path, ["a", "b"])


def test_too_little_to_hold_any_out(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", seed=0, conversations=2)
    with pytest.raises(InvalidInputError, match="too few to hold out one in 1000"):
        Corpus.read(tmp_path, every=1000)


def test_shards_that_are_being_written_are_not_there(tmp_path: Path) -> None:
    write_shard(tmp_path, "a", seed=0)
    write_shard(tmp_path, ".b.partial", seed=0)
    write_shard(tmp_path, "c", seed=0)
    assert list_shards(tmp_path) == ["a", "c"]
    (tmp_path / "manifest.json").write_text('{"shards": [{"file": "a.npz"}]}')
    assert list_shards(tmp_path) == ["a"]  # c is not in the manifest yet
