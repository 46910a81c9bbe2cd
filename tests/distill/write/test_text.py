"""``write_text`` from a tiny random target: what it writes, resumes and refuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specdec.distill.write import (
    WriteOptions,
    WriteProgress,
    read_manifest,
    read_shard,
    write_text,
)
from specdec.distill.write import text as text_module
from specdec.distill.write.conversation import ANSWER, TEMPLATE
from specdec.errors import InvalidInputError
from tests.tiny_gguf import write_tiny_gguf

SMALL = WriteOptions(
    tokens=1500, length=48, conversations=24, rows=8, engine="torch", threads=1, openings=0.5
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    path.write_text(json.dumps({"own": ["the quick fox", "a lazy dog"], "other": ["words"]}))
    return str(path)


@pytest.fixture(scope="module", params=["torch", "onnx"])
def options(request: pytest.FixtureRequest, prompts: str) -> WriteOptions:
    return replace(SMALL, engine=request.param, prompts=(prompts,))


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")
    }


def test_shards_hold_what_the_manifest_says(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions
) -> None:
    seen: list[WriteProgress] = []
    manifest = write_text(tiny_gguf, tmp_path, options, seen.append)
    assert manifest.tokens >= options.tokens
    assert read_manifest(tmp_path) == manifest
    assert json.loads((tmp_path / "manifest.json").read_text())["tokens"] == manifest.tokens
    for shard in manifest.shards:
        content = read_shard(tmp_path / shard.file)
        offsets, tokens, role = content["offsets"], content["tokens"], content["role"]
        assert [content[name].dtype for name in ("offsets", "tokens", "role", "temperature")] == [
            np.int64, np.uint32, np.uint8, np.float32,
        ]  # fmt: skip
        assert offsets[0] == 0
        assert offsets[-1] == len(tokens) == len(role) == shard.tokens
        lengths = np.diff(offsets)
        assert len(lengths) == len(content["temperature"]) == shard.conversations
        assert lengths.max() <= options.length
        assert set(content["kind"].tolist()) <= {"own", "other"}
        for start, end in itertools.pairwise(offsets):
            assert ANSWER in role[start:end]
            assert role[end - 1] == TEMPLATE
        assert shard.conversations + sum(shard.dropped.values()) == options.conversations
    assert seen[-1].tokens == manifest.tokens
    assert seen[-1].seconds_left == 0


def test_the_same_options_write_the_same_bytes(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions
) -> None:
    write_text(tiny_gguf, tmp_path / "a", options)
    write_text(tiny_gguf, tmp_path / "b", options)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    write_text(tiny_gguf, tmp_path / "c", replace(options, seed=2))
    assert _files(tmp_path / "a") != _files(tmp_path / "c")


def test_interrupted_at_any_moment_it_ends_the_same(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tiny_gguf, tmp_path / "whole", options)
    monkeypatch.setattr(text_module, "_REPORT_SECONDS", 0)
    for moment in (3, 40, 200):
        calls = itertools.count(1)

        def interrupt(
            progress: WriteProgress, calls: Iterator[int] = calls, moment: int = moment
        ) -> None:
            if next(calls) == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_text(tiny_gguf, tmp_path / "cut", options, interrupt)
        left = {path.name for path in (tmp_path / "cut").iterdir()}
        assert not any("partial" in name or "scratch" in name for name in left)
    assert "shard-00000.npz" in left
    write_text(tiny_gguf, tmp_path / "cut", options)
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


def test_what_a_killed_process_left_is_redone(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions
) -> None:
    write_text(tiny_gguf, tmp_path, options)
    whole = _files(tmp_path)
    manifest = json.loads(whole["manifest.json"])
    last = manifest["shards"].pop()
    # Killed between the last shard and the manifest that names it, with files half written.
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / last["file"]).write_bytes(b"cut off")
    (tmp_path / ".shard-00009.npz.partial-12345678").write_bytes(b"cut off")
    (tmp_path / ".scratch-abc").mkdir()
    write_text(tiny_gguf, tmp_path, options)
    assert _files(tmp_path) == whole
    assert {path.name for path in tmp_path.iterdir()} == {*whole, ".lock"}


def test_more_tokens_go_on_where_it_ended(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions
) -> None:
    first = write_text(tiny_gguf, tmp_path, replace(options, tokens=1))
    assert len(first.shards) == 1
    again = write_text(tiny_gguf, tmp_path, options)
    assert again.shards[0] == first.shards[0]
    assert again.tokens >= options.tokens


def test_no_conversation_twice(tiny_gguf: Path, tmp_path: Path, options: WriteOptions) -> None:
    manifest = write_text(tiny_gguf, tmp_path, options)
    written = [
        tuple(content["tokens"][start:end])
        for content in (read_shard(tmp_path / shard.file) for shard in manifest.shards)
        for start, end in itertools.pairwise(content["offsets"])
    ]
    assert len(set(written)) == len(written)
    assert sum(shard.dropped.get("duplicate", 0) for shard in manifest.shards) > 0


def test_the_target_writes_the_user_too(tiny_gguf: Path, tmp_path: Path) -> None:
    manifest = write_text(tiny_gguf, tmp_path, replace(SMALL, tokens=600))
    contents = [read_shard(tmp_path / shard.file) for shard in manifest.shards]
    assert {role for content in contents for role in content["role"].tolist()} == {0, 1, 2}
    kinds = {kind for content in contents for kind in content["kind"].tolist()}
    assert "free" in kinds
    assert len(kinds) > 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "was written with seed = 1, not 3"),
        ({"length": 40}, "was written with length = 48, not 40"),
    ],
)
def test_other_settings_are_refused(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions, change: dict[str, Any], message: str
) -> None:
    write_text(tiny_gguf, tmp_path, replace(options, tokens=1))
    with pytest.raises(InvalidInputError, match=message):
        write_text(tiny_gguf, tmp_path, replace(options, **change))


def test_another_target_is_refused(tiny_gguf: Path, tmp_path: Path, options: WriteOptions) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", seed=5)
    write_text(tiny_gguf, tmp_path / "text", replace(options, tokens=1))
    with pytest.raises(InvalidInputError, match="holds the text of another target"):
        write_text(other, tmp_path / "text", options)


def test_an_altered_shard_is_refused(
    tiny_gguf: Path, tmp_path: Path, options: WriteOptions
) -> None:
    write_text(tiny_gguf, tmp_path, replace(options, tokens=1))
    (tmp_path / "shard-00000.npz").write_bytes(b"something else")
    with pytest.raises(InvalidInputError, match="missing or altered"):
        write_text(tiny_gguf, tmp_path, options)


def test_used_up_prompts_end_in_one_line(tiny_gguf: Path, tmp_path: Path, prompts: str) -> None:
    greedy = replace(
        SMALL, prompts=(prompts,), answers=(replace(SMALL.answers[0], share=1.0),), second_turn=0
    )
    with pytest.raises(InvalidInputError, match="give more prompts"):
        write_text(tiny_gguf, tmp_path, greedy)


def test_a_raw_model_is_refused(tmp_path: Path) -> None:
    raw = write_tiny_gguf(tmp_path / "raw.gguf", without=["tokenizer.chat_template"])
    with pytest.raises(InvalidInputError, match="the target has no chat template"):
        write_text(raw, tmp_path / "text", SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 300}, "length is 300; the target's context has 256 tokens"),
        ({"engine": "abacus"}, "engine is 'abacus'"),
        ({"layout": "int3"}, "not written in layout 'int3'"),
        ({"second_turn": 1.5}, "second_turn is 1.5"),
        ({"answers": ()}, "answers is empty"),
        ({"tokens": 0}, "tokens is 0"),
        ({"device": "abacus"}, "device 'abacus' is not to be had"),
        ({"prompts": ("nowhere.txt",)}, "nowhere.txt"),
    ],
)
def test_bad_options_are_one_line(
    tiny_gguf: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        write_text(tiny_gguf, tmp_path, replace(SMALL, **change))
    assert "\n" not in str(error.value)
