"""Mutation test: wrong versions of the cost model, each of which the simulations must catch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from core_build import COMPILER, REPOSITORY, compile_object, link_package

FLAGS = ["-O1"]
SOURCES = (
    "auto_policy.cpp",
    "acceptance.cpp",
    "round_costs.cpp",
    "step_costs.cpp",
    "bind_policy.cpp",
)

# The cost model as a module of its own.
MODULE = """
#include "bind_policy.h"
PYBIND11_MODULE(_core, m) {
  specdec::bind_policy(m);
  m.attr("AUTO") = specdec::kAuto;
}
"""

# (file, what is written there, what is put in its place)
MUTATIONS = {
    "drafter steps cost nothing": ("auto_policy.cpp", "gain -= rate_ * draft_cost(i);", ""),
    "rows cost nothing": (
        "auto_policy.cpp",
        "return rate_ * (seconds(rows + more) - seconds(rows));",
        "return 0 * (rows + more);",
    ),
    "a second is worth what it is worth without drafts": (
        "auto_policy.cpp",
        "return std::max(blend, 1.0) / plain;",
        "return std::min(blend, 1.0) / plain;",
    ),
    "a draft is worth a token whether it is reached or not": (
        "auto_policy.cpp",
        "gain += worth(i, reached);",
        "gain += worth(i, acceptance_.next(i, before));",
    ),
    "no draft is left out or stopped at": (
        "auto_policy.cpp",
        "} else if (result.go_on && next.gain <= 0) {",
        "} else if (false) {",
    ),
    "never plain": (
        "auto_policy.cpp",
        "if (gain <= 0) return looks(gain) ? 1 : 0;",
        "",
    ),
    "never looks whether drafting pays again": (
        "auto_policy.cpp",
        "if (probe_purse_ < -gain) return false;",
        "return false;",
    ),
    "looks whether drafting pays all the time": (
        "auto_policy.cpp",
        "if (probe_purse_ < -gain) return false;",
        "",
    ),
    "every sibling is a node": (
        "auto_policy.cpp",
        "if (before * chance <= rows_cost(rows, 1)) break;",
        "",
    ),
    "no sibling is a node": (
        "auto_policy.cpp",
        "if (before * chance <= rows_cost(rows, 1)) break;",
        "if (chance < 2) break;",
    ),
    "siblings whatever a block brings": (
        "auto_policy.cpp",
        "if (tree.gain > chain.gain) return;",
        "if (tree.gain + chain.gain > -1e9) return;",
    ),
    "a block whatever siblings bring": (
        "auto_policy.cpp",
        "if (tree.gain > chain.gain) return;",
        "static_cast<void>(tree);",
    ),
    "what a block brings more is not counted": (
        "auto_policy.cpp",
        "return block_ ? reached * source().block(depth) : reached;",
        "return reached + 0 * depth;",
    ),
    "long drafts before their cost is known": (
        "auto_policy.cpp",
        "if (reached < kFirstReach) break;",
        "",
    ),
    "set-up counts as cost": ("auto_policy.cpp", "if (!first_) {", "{"),
    "a row of a shared step costs one sequence what it costs alone": (
        "round_costs.cpp",
        "std::min(rows * shared_->sequences, shared_->target->max_rows())",
        "shared_->sequences + rows - 1",
    ),
    "a prefill's step tells what narrow ones cost": (
        "round_costs.cpp",
        "shared_->target->known(rows * shared_->sequences)",
        "shared_->target->known(shared_->target->max_rows())",
    ),
    "each pays the whole of a shared drafter's step": (
        "round_costs.cpp",
        "(shared_->draft->target(more) - low)) / drafting;",
        "(shared_->draft->target(more) - low));",
    ),
    "a shared drafter's step costs a few what it costs all": (
        "round_costs.cpp",
        "kCompanyRate = 0.2;",
        "kCompanyRate = 0;",
    ),
    "each goes by what drafting would cost if all did": (
        "round_costs.cpp",
        "    drafting_ = gaining;",
        "    drafting_ = gaining > 0 ? sequences : 0;",
    ),
    "sequences look for half of the time": (
        "round_costs.cpp",
        "kLookShare = 0.006;",
        "kLookShare = 0.5;",
    ),
    "sequences never look": (
        "round_costs.cpp",
        "kLookShare = 0.006;",
        "kLookShare = 0;",
    ),
    "confidence counts for nothing": (
        "acceptance.cpp",
        "if (!(confidence >= 0)) return kBins;",
        "return kBins;",
    ),
    "confidence is believed": (
        "acceptance.cpp",
        "  const double binned = chain_[bin(confidence)].ratio(prior(confidence), kBinWeight);\n"
        "  return chance(binned * depth_[depth].ratio(1, kDepthWeight));",
        "  return chance(confidence >= 0 ? confidence : 0.5 + 0 * depth);",
    ),
    "depths that were given up are never tried again": (
        "acceptance.cpp",
        "kKeepUnseen = 0.99;",
        "kKeepUnseen = 1;",
    ),
    "forgets at once": ("acceptance.cpp", "kKeep = 0.99;", "kKeep = 0.6;"),
    "an interruption counts in full": (
        "step_costs.cpp",
        "std::max(std::abs(error) / (kOutlier * expected), 1.0)",
        "std::min(std::abs(error) / (kOutlier * expected), 1.0)",
    ),
    "a slow machine is held against the width that ran": (
        "step_costs.cpp",
        "scale_.mean += scale_.variance * gain;",
        "",
    ),
    "more rows may cost less": (
        "step_costs.cpp",
        "while (!blocks_.empty() && blocks_.back().value > block.value) {",
        "while (false) {",
    ),
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("objects")
    module = folder / "module.cpp"
    module.write_text('#include "auto_policy.h"\n' + MODULE)
    flags = [*FLAGS, f"-I{REPOSITORY / 'csrc'}"]
    objects = {name: folder / f"{name}.o" for name in SOURCES}
    for name, target in objects.items():
        compile_object(REPOSITORY / "csrc" / name, target, flags)
    objects["module.cpp"] = folder / "module.o"
    compile_object(module, objects["module.cpp"], flags)
    return objects


def checks_pass(objects: dict[str, Path], folder: Path) -> bool:
    """Whether the tests of the cost model pass on these objects."""
    link_package(list(objects.values()), folder)
    tests = folder / "policy_tests"
    tests.mkdir()
    for name in ("policy_worlds.py", "policy_checks.py", "test_draft_policy.py"):
        shutil.copy(Path(__file__).parent / name, tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "policy_tests"],
        cwd=folder,
        timeout=300,
        capture_output=True,
        text=True,
    )
    print(done.stdout[-600:], done.stderr[-600:])
    assert done.returncode in (0, 1)
    return done.returncode == 0


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler"),
]


def test_the_cost_model_as_it_is_passes(objects: dict[str, Path], tmp_path: Path) -> None:
    assert checks_pass(objects, tmp_path)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_caught(name: str, objects: dict[str, Path], tmp_path: Path) -> None:
    file, before, after = MUTATIONS[name]
    text = (REPOSITORY / "csrc" / file).read_text()
    assert text.count(before) == 1, f"{file} has changed: write this mutation anew"
    source = tmp_path / file
    source.write_text(text.replace(before, after))
    mutant = dict(objects)
    mutant[file] = tmp_path / "mutant.o"
    compile_object(source, mutant[file], [*FLAGS, f"-I{REPOSITORY / 'csrc'}"])
    assert not checks_pass(mutant, tmp_path)
