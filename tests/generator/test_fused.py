"""Layout ``fused`` through the face: text, the probe, and what a build without operators says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import specdec.session
from specdec import Generator, InvalidInputError, Model, ModelFolderError, SamplingParams
from specdec.convert import convert

PROMPT = "the quick brown fox"
LENGTHS = (1, 2, 4, 16, "auto")
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1, seed=11, max_tokens=48, ignore_eos=True)


@pytest.fixture(scope="module")
def target(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model.load(convert(tiny_gguf, tmp_path_factory.mktemp("f") / "target", layout="fused"))


@pytest.fixture(
    scope="module",
    params=[
        *product(("attached", "standalone"), ("fused", "fused-exact")),
        ("standalone", "nbits8"),
    ],
    ids=" ".join,
)
def drafter(
    request: pytest.FixtureRequest,
    tiny_gguf: Path,
    tiny_attached_gguf: Path,
    tiny_drafter_gguf: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    """Of either kind, in the target's layout and in another."""
    kind, layout = request.param
    source = tiny_attached_gguf if kind == "attached" else tiny_drafter_gguf
    folder = tmp_path_factory.mktemp("f") / "drafter"
    return Model.load(convert(source, folder, target_source=tiny_gguf, layout=layout))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "coupled"])
def test_text_is_the_targets_own(target: Model, drafter: Model, sampling: SamplingParams) -> None:
    plain = Generator(target, acceptance="coupled")
    expected = plain.generate(PROMPT, sampling, raw=True)
    for k in LENGTHS:
        generator = Generator(target, drafter, draft_length=k, acceptance="coupled")
        found = generator.generate(PROMPT, sampling, raw=True)
        assert found.tokens == expected.tokens, k
        assert found.text == expected.text
        assert k == "auto" or generator.stats.drafted > 0


@pytest.mark.parametrize(("ours", "theirs"), [("nbits8", "fused"), ("fused", "nbits8")])
def test_an_attached_drafter_reads_k_and_v_as_its_target_writes_them(
    tmp_path: Path, tiny_gguf: Path, tiny_attached_gguf: Path, ours: str, theirs: str
) -> None:
    target = Model.load(convert(tiny_gguf, tmp_path / "target", layout=ours))
    drafter = Model.load(
        convert(tiny_attached_gguf, tmp_path / "d", target_source=tiny_gguf, layout=theirs)
    )
    bits = {"nbits8": 32, "fused": 16}
    message = (
        f"reads keys and values in {bits[theirs]} bits, and target writes them in {bits[ours]}; "
        "convert one of them anew, with the other's --layout"
    )
    with pytest.raises(InvalidInputError, match=message):
        Generator(target, drafter)


def test_rows_run_alone_and_in_trees(target: Model, tmp_path: Path, tiny_gguf: Path) -> None:
    assert target.width_invariant
    assert target.takes_trees
    other = Model.load(convert(tiny_gguf, tmp_path / "other", layout="nbits8"))
    assert not other.takes_trees


def test_a_step_of_one_token_is_not_padded(target: Model) -> None:
    """So a context of n columns takes n tokens, to the last one by itself."""
    capacity = 7
    decoder = target.new_decoder(capacity=capacity, max_logit_rows=capacity)
    rows = []
    for token in range(capacity):
        rows.append(np.array(decoder.forward([token], 1)[0]))
        decoder.commit(1)
    decoder.truncate(0)
    np.testing.assert_array_equal(decoder.forward(list(range(capacity)), capacity), rows)


def test_a_build_without_the_operators_says_so_in_one_line(
    target: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specdec.session, "register_operators", lambda options: "no such symbol")
    with pytest.raises(ModelFolderError) as caught:
        Model.load(target.folder.path)
    message = str(caught.value)
    assert "needs the operator Embedding" in message
    assert "(no such symbol)" in message
    assert "--layout nbits8" in message
    assert "\n" not in message


def test_a_graph_of_another_layout_loads_without_the_operators(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(tiny_gguf, tmp_path / "other", layout="nbits8")
    monkeypatch.setattr(specdec.session, "register_operators", lambda options: "no such symbol")
    assert Model.load(folder).width_invariant
