"""Models by name: fetched once, checked, rebuilt when damaged. No network: pip is a stand-in."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import specdec.convert
from specdec import hub, recipe
from specdec.errors import ModelFolderError, PullError
from specdec.file_lock import file_lock
from specdec.model_folder import ModelConfig, ModelFolder, create_model_folder, write_manifest
from tests.test_model_folder import MANIFEST

CHECKPOINT = b"GGUF" + bytes(1000)
DRAFTER = b"GGUF drafter"

FAKE_PIP = """
import os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if (here / "fails").exists():
    sys.exit("WARNING: retrying\\nERROR: No matching distribution found\\n\\n")
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
target.mkdir(parents=True)
for wheel in here.glob("*.whl"):
    shutil.copy(wheel, target)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """A package index with one wheel, two recipes, a converter, and a cache folder."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.pip = root / "site" / "pip"
        self.recipes = root / "recipes"
        self.conversions: list[dict[str, Any]] = []
        self.during_conversion: Callable[[], None] = lambda: None
        self.pip.mkdir(parents=True)
        (self.pip / "__init__.py").touch()
        (self.pip / "__main__.py").write_text(FAKE_PIP)
        self.wheel = self.pip / "tiny-1.0-py3-none-any.whl"
        self.publish(CHECKPOINT)
        self.write_recipe(
            {
                "name": "tiny-drafter",
                "role": "drafter",
                "target": "tiny",
                "source": {
                    "file": "drafter.gguf",
                    "sha256": sha256(DRAFTER),
                    "bytes": len(DRAFTER),
                },
            }
        )
        (self.recipes / "tiny-drafter" / "drafter.gguf").write_bytes(DRAFTER)

    def publish(self, content: bytes, file: str = "tiny/model.gguf") -> None:
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(file, content)
            archive.writestr("tiny/__init__.py", "raise SystemExit")
        self.write_recipe(self.tiny_recipe())

    def tiny_recipe(self, content: bytes = CHECKPOINT) -> dict[str, Any]:
        return {
            "name": "tiny",
            "description": "a test model",
            "license": "Apache-2.0",
            "role": "target",
            "source": {
                "pypi": "tiny==1.0",
                "wheel_sha256": sha256(self.wheel.read_bytes()),
                "wheel_bytes": self.wheel.stat().st_size,
                "file": "tiny/model.gguf",
                "sha256": sha256(content),
                "bytes": len(content),
            },
            "sampling": {"temperature": 0.2},
        }

    def write_recipe(self, document: dict[str, Any]) -> None:
        folder = self.recipes / document["name"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(document))

    def downloads(self) -> int:
        calls = self.pip / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    def convert(
        self,
        source: Path,
        destination: Path,
        *,
        name: str | None = None,
        target_source: Path | None = None,
        sampling: dict[str, Any] | None = None,
        replace: bool = False,
        progress: Callable[[str, float], None] | None = None,
    ) -> Path:
        self.conversions.append({"source": source, "target_source": target_source})
        self.during_conversion()
        origin = {"sha256": sha256(source.read_bytes())}
        layout = specdec.convert.DEFAULT_LAYOUT
        if target_source is not None:
            origin["target_sha256"] = sha256(target_source.read_bytes())
            layout = specdec.convert.DEFAULT_DRAFTER_LAYOUT
        if progress:
            progress("converting", 1.0)
        with create_model_folder(destination, replace=replace) as folder:
            (folder / "graph.onnx").write_bytes(b"graph")
            (folder / "tokenizer.json").write_text("{}")
            version = specdec.convert.GRAPH_VERSION
            graph = {"file": "graph.onnx", "backend": "cpu", "layout": layout, "version": version}
            changes = {"name": name, "source": origin, "sampling": sampling, "graph": graph}
            write_manifest(folder, MANIFEST | changes)
        return destination


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setenv("SPECDEC_HOME", str(world.home))
    monkeypatch.setenv("PYTHONPATH", str(world.pip.parent))  # for the subprocess
    monkeypatch.setattr(recipe, "_recipes_root", lambda: world.recipes)
    monkeypatch.setattr(specdec.convert, "convert", world.convert)
    return world


def test_pull_makes_a_model_folder_once(world: World) -> None:
    stages: list[tuple[str, float]] = []
    folder = hub.pull("tiny", progress=lambda stage, fraction: stages.append((stage, fraction)))
    assert folder == world.home / "models" / "tiny"
    model = ModelFolder.open(folder)
    assert model.name == "tiny"
    assert model.sampling == {"temperature": 0.2}
    assert list(dict.fromkeys(stage for stage, _ in stages)) == [
        "downloading tiny==1.0",
        "unpacking model.gguf",
        "converting",
    ]
    assert all(0 <= fraction <= 1 for _, fraction in stages)
    (call,) = (world.pip / "calls").read_text().splitlines()
    assert "--no-deps --only-binary=:all:" in call
    assert call.endswith(" tiny==1.0")

    assert hub.pull("tiny") == folder
    assert (world.downloads(), len(world.conversions)) == (1, 1)
    assert hub.pull("tiny", replace=True) == folder
    assert (world.downloads(), len(world.conversions)) == (1, 2)


def test_nothing_but_the_checkpoint_and_the_model_is_kept(world: World) -> None:
    hub.pull("tiny")
    files = [path for path in world.home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(path.name for path in files) == [
        "graph.onnx",
        "model.gguf",
        "model.json",
        "tokenizer.json",
    ]


def test_a_drafter_lies_beside_its_recipe_and_brings_its_target(world: World) -> None:
    folder = hub.pull("tiny-drafter")
    (conversion,) = world.conversions
    assert conversion["source"] == world.recipes / "tiny-drafter" / "drafter.gguf"
    assert conversion["target_source"].read_bytes() == CHECKPOINT
    assert hub.pull("tiny-drafter") == folder
    hub.pull("tiny")
    assert (world.downloads(), len(world.conversions)) == (1, 2)


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "manifest"])
def test_a_damaged_folder_is_rebuilt(world: World, damage: str) -> None:
    folder = hub.pull("tiny")
    match damage:
        case "altered":
            (folder / "graph.onnx").write_bytes(b"grapH")
        case "truncated":
            (folder / "graph.onnx").write_bytes(b"g")
        case "missing":
            (folder / "graph.onnx").unlink()
        case "manifest":
            (folder / "model.json").write_text("{")
    assert hub.pull("tiny") == folder
    ModelFolder.open(folder)
    assert (world.downloads(), len(world.conversions)) == (1, 2)


def test_a_folder_from_another_checkpoint_is_rebuilt(world: World) -> None:
    hub.pull("tiny-drafter")
    hub.pull("tiny")
    newer = CHECKPOINT + b"v2"
    world.publish(newer)
    world.write_recipe(world.tiny_recipe(newer))
    assert ModelFolder.open(hub.pull("tiny")).source["sha256"] == sha256(newer)
    assert ModelFolder.open(hub.pull("tiny-drafter")).source["target_sha256"] == sha256(newer)
    assert world.downloads() == 2


def test_a_folder_in_another_layout_is_rebuilt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.pull("tiny")
    monkeypatch.setattr(specdec.convert, "DEFAULT_LAYOUT", "better")
    assert ModelFolder.open(hub.pull("tiny")).layout == "better"


def test_a_folder_of_an_older_graph_writer_is_rebuilt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.pull("tiny")
    monkeypatch.setattr(specdec.convert, "GRAPH_VERSION", 1000)
    assert ModelFolder.open(hub.pull("tiny")).graph_version == 1000


def test_a_folder_without_hidden_states_is_rebuilt_on_use(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(specdec.convert, "GRAPH_VERSION", 1)
        hub.pull("tiny")
    for _ in range(2):
        assert ModelFolder.open(hub.resolve("tiny")).graph_version == specdec.convert.GRAPH_VERSION
    assert len(world.conversions) == 2


def test_a_damaged_download_is_fetched_again(world: World) -> None:
    hub.pull("tiny")
    (download,) = (world.home / "downloads").rglob("*.gguf")
    download.write_bytes(b"x" * len(CHECKPOINT))
    hub.pull("tiny", replace=True)
    assert download.read_bytes() == CHECKPOINT
    assert world.downloads() == 2


def test_a_failing_pip_is_quoted(world: World) -> None:
    (world.pip / "fails").touch()
    with pytest.raises(PullError) as caught:
        hub.pull("tiny")
    message = str(caught.value)
    assert "pip could not download tiny==1.0: No matching distribution found; check the" in message
    assert "\n" not in message
    (world.pip / "fails").unlink()
    hub.pull("tiny")


def test_an_environment_without_pip_says_so(world: World) -> None:
    (world.pip / "__main__.py").write_text("import sys; sys.exit('python: No module named pip')")
    with pytest.raises(PullError, match="No module named pip; run 'python -m ensurepip', then"):
        hub.pull("tiny")


def test_another_wheel_than_the_recipes_is_refused(world: World) -> None:
    document = world.tiny_recipe()
    document["source"]["wheel_sha256"] = "0" * 64
    world.write_recipe(document)
    with pytest.raises(PullError, match="served another file than the recipe names"):
        hub.pull("tiny")
    assert world.conversions == []


@pytest.mark.parametrize(
    ("content", "file", "message"),
    [
        (CHECKPOINT[:-1], "tiny/model.gguf", "has 1003 bytes instead of 1004"),
        (b"x" * len(CHECKPOINT), "tiny/model.gguf", "its content is not what the recipe names"),
        (CHECKPOINT, "tiny/other.gguf", "no usable tiny/model.gguf in it"),
    ],
)
def test_another_checkpoint_than_the_recipes_is_refused(
    world: World, content: bytes, file: str, message: str
) -> None:
    world.publish(content, file)
    with pytest.raises(PullError, match=message):
        hub.pull("tiny")
    assert world.conversions == []
    assert list((world.home / "downloads").rglob("*.gguf")) == []


def test_a_damaged_file_beside_a_recipe_is_named(world: World) -> None:
    (world.recipes / "tiny-drafter" / "drafter.gguf").write_bytes(b"x")
    with pytest.raises(PullError, match=r"drafter\.gguf: has 1 bytes instead of .* reinstall"):
        hub.pull("tiny-drafter")


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


def test_an_interrupted_conversion_leaves_nothing(world: World) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    world.during_conversion = interrupt
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny")
    world.during_conversion = lambda: None
    hub.pull("tiny")
    assert world.downloads() == 1


def test_whoever_pulls_at_the_same_time_waits_and_shares(world: World) -> None:
    waiting = threading.Event()
    stages: list[str] = []

    def second() -> None:
        def progress(stage: str, fraction: float) -> None:
            stages.append(stage)
            waiting.set()

        hub.pull("tiny", progress=progress)

    thread = threading.Thread(target=second)

    def start_second() -> None:
        thread.start()
        assert waiting.wait(10)

    world.during_conversion = start_second
    hub.pull("tiny")
    thread.join(10)
    assert stages == ["waiting for another process to make tiny"]
    assert (world.downloads(), len(world.conversions)) == (1, 1)


def test_an_unwritable_home_gives_one_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.recipes / "file").touch()
    monkeypatch.setenv("SPECDEC_HOME", str(world.recipes / "file"))
    with pytest.raises(PullError, match="cannot write below"):
        hub.pull("tiny")


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


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from specdec.file_lock import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with file_lock(lock, on_wait=holder.kill):  # comes here only because the holder died
        assert holder.wait() != 0
    holder.stdout.close()


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
