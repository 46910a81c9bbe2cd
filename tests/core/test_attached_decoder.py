"""What an attached drafter shares with its target, and the steps that it refuses."""

from __future__ import annotations

import pytest
from attached_toy import AttachedToy, TargetToy
from toy import Toy, plain_text, run_stream, stream_options
from toy_pairs import PROMPT, TABLE, Broken, attached_pair

from specdec import _core
from specdec.errors import ContextFullError, InvalidInputError

# --- which hidden states the target has ---


def test_hidden_states_of_committed_positions() -> None:
    target = TargetToy(TABLE, min_width=2, max_width=8, max_logit_rows=8, capacity=16)
    decoder = target.decoder

    def known() -> list[int]:
        rows = {at: decoder.hidden(at) for at in range(-2, 20)}
        for at, row in rows.items():
            assert row is None or row[1] == at
        return [at for at, row in rows.items() if row is not None]

    assert known() == []
    decoder.forward([1, 2, 3, 4, 5], 5)
    assert known() == []  # computed, and not committed
    decoder.commit(3)
    assert known() == [0, 1, 2]
    decoder.truncate(2)
    assert known() == [0, 1]
    decoder.forward([6], 1)  # padded to two rows: the second one is nobody's
    decoder.commit(1)
    assert known() == [2]
    decoder.truncate(1)
    assert known() == []
    for count in (3, 8):
        decoder.forward([1] * count, 1)
        decoder.commit(count)
    with pytest.raises(ContextFullError):
        decoder.forward([1] * 8, 1)
    assert known() == list(range(4, 12))  # a step that did not begin changed nothing

    def fail(run: int) -> None:
        raise Broken

    target.before_run = fail
    with pytest.raises(Broken):
        decoder.forward([1], 1)
    assert known() == []


def test_a_target_without_hidden_states() -> None:
    toy = Toy(TABLE)
    toy.decoder.forward(PROMPT, 1)
    toy.decoder.commit(5)
    assert toy.decoder.hidden(4) is None
    assert "hidden" not in toy.decoder.buffers()
    with pytest.raises(InvalidInputError, match="target whose graph gives hidden states"):
        AttachedToy(TABLE, toy)
    with pytest.raises(InvalidInputError, match="hidden size"):
        Toy(TABLE, hidden=-1)


# --- by hand ---


def test_a_step_never_touches_committed_columns() -> None:
    target, draft, _ = attached_pair()
    decoder = draft.decoder
    refused = "continues the one before, or follows its target"
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)
    assert not decoder.follow(0)  # there is no hidden state before the first token
    target.decoder.forward(PROMPT, 1)
    target.decoder.commit(5)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)
    assert not decoder.follow(4)
    assert decoder.follow(5)
    decoder.forward([1], 1)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([1], 1)  # not committed: no features for that column any more
    decoder.commit(1)
    decoder.forward([2], 1)
    decoder.commit(1)
    assert (decoder.length, target.decoder.length) == (7, 5)
    # The target goes on in the meantime.
    target.decoder.forward([1] * 4, 1)
    target.decoder.commit(4)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([3], 1)
    assert decoder.follow(9)
    decoder.truncate(3)
    with pytest.raises(InvalidInputError, match=refused):
        decoder.forward([3], 1)
    assert target.values[:9].tolist() == list(range(1, 10))
    with pytest.raises(InvalidInputError, match="a step of 2 tokens"):
        decoder.forward([1, 2], 1)


def test_an_engine_of_another_target_gets_no_drafts() -> None:
    _, draft, _ = attached_pair()
    engine = _core.Engine(TargetToy(TABLE).decoder, _core.AttachedDrafter(draft.decoder))
    engine.set_draft_length(4)
    options = stream_options(temperature=0, max_tokens=20)
    assert run_stream(engine, PROMPT, options) == plain_text(TABLE, PROMPT, options)
    assert draft.runs == 0


@pytest.mark.parametrize("layers", [(), (1,), (-1,), (0, 0)], ids=str)
def test_layers_that_the_target_lacks(layers: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="different layers of the target"):
        AttachedToy(TABLE, TargetToy(TABLE), target_layers=layers)


def test_its_layers_are_the_targets_memory_and_keep_it_alive() -> None:
    def ignore(width: int, head: int) -> None:
        pass

    target = _core.InPlaceDecoder(
        vocabulary=4, head_ids=[], layers=4, kv_heads=2, head_dim=8, capacity=16, min_width=1,
        max_width=4, max_logit_rows=4, hidden=5, run=ignore,
    )  # fmt: skip
    drafter = _core.AttachedDecoder(
        vocabulary=4, head_ids=[], target=target, target_layers=[0, 3], context=16, run=ignore
    )
    ours, theirs = target.buffers(), drafter.buffers()
    assert theirs["features"].shape == theirs["hidden"].shape == (1, 5)
    assert not any(name.endswith(".2") for name in theirs)
    for layer, target_layer in ((0, 0), (1, 3)):
        for kind in ("key", "value"):
            array = ours[f"{kind}.{target_layer}"]
            assert theirs[f"{kind}.{layer}"].ctypes.data == array.ctypes.data
            assert theirs[f"{kind}.{layer}"].shape == array.shape == (1, 2, 16, 8)
    del target, ours
    theirs["key.1"][...] = 1.5  # under a sanitizer this would tell
    assert drafter.buffers()["key.1"].sum() == 1.5 * 2 * 16 * 8


def test_no_decoder() -> None:
    with pytest.raises(TypeError):
        _core.AttachedDrafter(None)
    with pytest.raises(TypeError):
        _core.AttachedDrafter(TargetToy(TABLE).decoder)
    with pytest.raises(TypeError):
        _core.AttachedDecoder(
            vocabulary=4, head_ids=[], target=None, target_layers=[0], context=4, run=print
        )
