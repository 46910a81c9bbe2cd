"""Training that begins with a drafter's file, on another text than that was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from specdec.distill.architecture import frequent_ids
from specdec.distill.corpus import Corpus
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
from tests.distill.runs import write_shard
from tests.tiny_gguf import DEFAULT_VOCAB, write_tiny_gguf


def test_its_head_is_kept_unless_another_size_is_asked_for(tmp_path: Path) -> None:
    target = write_tiny_gguf(tmp_path / "target.gguf", layers=4)
    for text, seed in (("first", 2), ("second", 3)):
        write_shard(tmp_path / text, "a", seed=seed, conversations=60)
    options = Options(
        text=str(tmp_path / "first"),
        tokens=1,
        batch_tokens=400,
        target_layers=(0, 2),
        head=200,
        dtype="float32",
        prompts_per_kind=0,
    )

    def head(name: str, given: Options) -> set[int]:
        distill(str(target), tmp_path / name, given)
        return set(np.load(tmp_path / f"{name}.work" / "head_ids.npy").tolist())

    first = head("begun", options)
    goes_on = replace(
        options,
        text=str(tmp_path / "second"),
        head=None,
        initial=str(tmp_path / "begun.work" / "drafter.gguf"),
    )
    frequencies = Corpus.read(tmp_path / "second", ["a"]).frequencies(DEFAULT_VOCAB)
    assert head("kept", goes_on) == first
    assert first != set(frequent_ids(frequencies, 200).tolist())
    assert head("smaller", replace(goes_on, head=150)) == set(
        frequent_ids(frequencies, 150).tolist()
    )
