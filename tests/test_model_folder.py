"""Model folders: atomic creation, the manifest, and one clear line for every kind of damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specdec import durable
from specdec.errors import ModelFolderError
from specdec.model_folder import ModelFolder, create_model_folder, write_manifest

MANIFEST: dict[str, Any] = {
    "name": "tiny",
    "architecture": "llama",
    "role": "target",
    "config": {
        "layers": 2,
        "hidden": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn": 96,
        "vocab": 300,
        "context": 128,
        "rope_theta": 10000,
        "norm_eps": 1e-5,
        "tied_head": True,
        "head_size": 300,
    },
    "graph": {"file": "graph.onnx", "backend": "cpu", "layout": "int8"},
    "head_ids": None,
    "tokenizer": {
        "file": "tokenizer.json",
        "chat_template": None,
        "bos_id": 1,
        "eos_id": 2,
        "stop_ids": [2],
        "add_bos": False,
        "vocabulary_sha256": "0" * 64,
    },
    "sampling": {"temperature": 0.2},
    "source": {"file": "tiny.gguf"},
}


def fill(folder: Path, marker: bytes = b"graph", **changes: Any) -> None:
    (folder / "graph.onnx").write_bytes(marker)
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, MANIFEST | changes)


def create(
    destination: Path,
    marker: bytes = b"graph",
    *,
    replace: bool = False,
    error: type[BaseException] | None = None,
) -> None:
    with create_model_folder(destination, replace=replace) as folder:
        fill(folder, marker)
        if error:
            raise error


@pytest.fixture
def model(tmp_path: Path) -> Path:
    destination = tmp_path / "models" / "tiny"
    create(destination)
    return destination


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_and_opens(model: Path) -> None:
    assert names(model.parent) == ["tiny"]
    folder = ModelFolder.open(model)
    assert (folder.name, folder.role, folder.backend, folder.layout) == (
        "tiny",
        "target",
        "cpu",
        "int8",
    )
    assert folder.config.heads == 4
    assert folder.config.rope_theta == 10000.0
    assert folder.config.tied_head is True
    assert folder.graph_path == model / "graph.onnx"
    assert folder.head_ids_path is None
    assert folder.chat_template_path is None
    assert folder.tokenizer.stop_ids == (2,)
    assert folder.sampling == {"temperature": 0.2}
    assert folder.source == {"file": "tiny.gguf"}


def test_manifest_lists_every_other_file_with_relative_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.bin").write_bytes(b"abc")
    write_manifest(tmp_path, {"name": "x"})
    write_manifest(tmp_path, {"name": "x"})  # its own earlier version is not among the files
    manifest = json.loads((tmp_path / "model.json").read_text())
    assert manifest["format"] == 1
    assert list(manifest["files"]) == ["sub/data.bin"]
    assert manifest["files"]["sub/data.bin"]["bytes"] == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        create(tmp_path / "tiny", error=error)
    assert names(tmp_path) == []


def test_a_failed_replacement_leaves_the_old_folder(model: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        create(model, b"new", replace=True, error=ZeroDivisionError)
    assert ModelFolder.open(model).graph_path.read_bytes() == b"graph"
    assert names(model.parent) == ["tiny"]


def test_an_existing_folder_is_kept_unless_asked(model: Path) -> None:
    with (
        pytest.raises(ModelFolderError, match="already exists; name another folder or ask to repl"),
        create_model_folder(model),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("atomic", [True, False])
def test_replacing_swaps(model: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    if not atomic:
        monkeypatch.setattr(durable, "_exchange", lambda first, second: False)
    create(model, b"new", replace=True)
    assert ModelFolder.open(model).graph_path.read_bytes() == b"new"
    assert names(model.parent) == ["tiny"]


def test_a_link_is_followed_when_replacing(model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(model)
    create(link, b"new", replace=True)
    assert link.is_symlink()
    assert (model / "graph.onnx").read_bytes() == b"new"


def test_what_is_not_a_model_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("documents", "file"):
        with (
            pytest.raises(ModelFolderError, match="not a model folder, so it is not replaced"),
            create_model_folder(tmp_path / name, replace=True),
        ):
            pytest.fail("the body must not run")
    assert (tmp_path / "documents" / "thesis.txt").exists()


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    destination = tmp_path / "tiny"
    slow = create_model_folder(destination)
    fill(slow.__enter__(), b"slow")
    create(destination, b"quick")
    with pytest.raises(ModelFolderError, match="another process wrote it meanwhile"):
        slow.__exit__(None, None, None)
    assert ModelFolder.open(destination).graph_path.read_bytes() == b"quick"
    assert names(tmp_path) == ["tiny"]


def test_what_a_killed_conversion_left_is_removed_next_time(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from specdec.model_folder import create_model_folder\n"
        "with create_model_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'graph.onnx').write_bytes(b'half')\n"
        "    print(folder.name, flush=True)\n"
        "    os._exit(9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tiny")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert names(tmp_path) == [killed.stdout.strip()]
    own_id_came_round = tmp_path / f".tiny.partial-{os.getpid()}-0123abcd"
    own_id_came_round.mkdir()
    alive = tmp_path / f".tiny.partial-{os.getppid()}-0123abcd"
    alive.mkdir()
    create(tmp_path / "tiny")
    assert names(tmp_path) == [alive.name, "tiny"]


def test_an_unwritable_place_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ModelFolderError, match="cannot be written"),
        create_model_folder(tmp_path / "file" / "tiny"),
    ):
        pytest.fail("the body must not run")


def damage(model: Path, how: str) -> None:
    graph, manifest = model / "graph.onnx", model / "model.json"
    text = manifest.read_text()
    match how:
        case "no folder":
            model.rename(model.with_name("elsewhere"))
        case "no manifest":
            manifest.unlink()
        case "bad json":
            manifest.write_text(text[:100])
        case "not utf-8":
            manifest.write_bytes(b"\xff\xfe")
        case "a list":
            manifest.write_text("[]")
        case "format":
            manifest.write_text(text.replace('"format": 1', '"format": 99'))
        case "missing":
            graph.unlink()
        case "truncated":
            graph.write_bytes(b"gra")
        case "altered":
            graph.write_bytes(b"grapH")
        case "role":
            manifest.write_text(text.replace('"role": "target"', '"role": "judge"'))
        case "type":
            manifest.write_text(text.replace('"layers": 2', '"layers": "two"'))
        case "escape":
            manifest.write_text(text.replace('"graph.onnx": {', '"../graph.onnx": {'))
        case "unlisted":
            manifest.write_text(text.replace('"file": "graph.onnx"', '"file": "other.onnx"'))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "tiny: no such model folder; pull or convert it again"),
        ("no manifest", "tiny: not a model folder, it has no model.json"),
        ("bad json", "model.json: not valid JSON"),
        ("not utf-8", "model.json: not valid JSON"),
        ("a list", "model.json: not a JSON object"),
        ("format", "model.json: format 99, this version of specdec reads format 1"),
        ("missing", "graph.onnx: missing; pull or convert it again"),
        ("truncated", "graph.onnx: has 3 bytes instead of 5; pull or convert it again"),
        ("altered", "graph.onnx: its content was altered"),
        ("role", "role 'judge' is neither"),
        ("type", "entry 'layers' is missing or not of type int"),
        ("escape", "points out of the folder"),
        ("unlisted", "file 'other.onnx' is not among its 'files'"),
    ],
)
def test_damage_is_named(model: Path, how: str, message: str) -> None:
    damage(model, how)
    with pytest.raises(ModelFolderError) as caught:
        ModelFolder.open(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_verify_sizes_are_still_checked(model: Path) -> None:
    damage(model, "altered")
    ModelFolder.open(model, verify=False)
    damage(model, "truncated")
    with pytest.raises(ModelFolderError, match="has 3 bytes instead of 5"):
        ModelFolder.open(model, verify=False)
