"""Mutation test: small wrong changes to the core's sources, each of which the checks must catch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from core_build import COMPILER, REPOSITORY, build_objects, compile_object, link_package

FLAGS = ["-O1"]

# (file, what is written there, what is put in its place)
MUTATIONS = {
    "block: ratio not capped": (
        "verify.cpp",
        "std::min(mass * target / draft, 1.0)",
        "mass * target / draft",
    ),
    "block: pass without the excess": (
        "verify.cpp",
        "pass = rest > 0 ? excess / rest : 1.0;",
        "pass = mass;",
    ),
    "block: residual of mass 1": (
        "verify.cpp",
        "sample_excess(accepted_mass, row,",
        "sample_excess(1.0, row,",
    ),
    "block: mass of the last prefix tried": (
        "verify.cpp",
        "sample_excess(accepted_mass, row,",
        "sample_excess(mass, row,",
    ),
    "block: excess of the row before": (
        "verify.cpp",
        "excess_mass(mass, p.row(i), drafts.q[i])",
        "excess_mass(mass, p.row(i - 1), drafts.q[i - 1])",
    ),
    "block: p and q swapped": (
        "verify.cpp",
        "std::min(mass * target / draft, 1.0)",
        "std::min(mass * draft / std::max(target, 1e-9), 1.0)",
    ),
    "block: first prefix decides": (
        "verify.cpp",
        "      accepted_mass = mass;\n    }",
        "      accepted_mass = mass;\n    } else { break; }",
    ),
    "block: one accept noise for all drafts": (
        "verify.cpp",
        "noise.uniform(Purpose::accept, static_cast<std::uint32_t>(i - 1)) < pass",
        "noise.uniform(Purpose::accept, 0) < pass",
    ),
    "token: p and q swapped": (
        "verify.cpp",
        "accept_noise(noise, i, 0) * draft < target",
        "accept_noise(noise, i, 0) * target < draft",
    ),
    "token: residual is p": (
        "verify.cpp",
        "Distribution rest = excess_of(1.0, row, q, q.total(), scratch);",
        "Distribution rest = row;",
    ),
    "token: residual of the first row": (
        "verify.cpp",
        "const Distribution& row = p.row(i);",
        "const Distribution& row = p.row(0);",
    ),
    "token: one accept noise for all drafts": (
        "verify.cpp",
        "candidate_offset(i, rank)",
        "candidate_offset(0, rank)",
    ),
    "token: residual from the noise that rejected": (
        "verify.cpp",
        "const double v = next_noise(noise, i);",
        "const double v = accept_noise(noise, i, 0);",
    ),
    "token: last row off by one": (
        "verify.cpp",
        "p.row(drafts.k).sample(next_noise(noise, drafts.k))",
        "p.row(drafts.k - 1).sample(next_noise(noise, drafts.k))",
    ),
    "coupled: position does not move": (
        "verify.cpp",
        "row.race(noise, static_cast<std::uint32_t>(accepted), race)",
        "row.race(noise, 0, race)",
    ),
    "coupled: row off by one": (
        "verify.cpp",
        "choose(p.row(accepted), accepted)",
        "choose(p.row(accepted > 0 ? accepted - 1 : 0), accepted)",
    ),
    "greedy: accepts the first draft unseen": (
        "verify.cpp",
        "if (drafts.tokens[accepted] == next) return kChain;",
        "if (accepted == 0 || drafts.tokens[accepted] == next) return kChain;",
    ),
    "excess: the mass is forgotten": (
        "distribution.cpp",
        "const auto p_scale = static_cast<float>(mass / p.total());",
        "const auto p_scale = static_cast<float>(1.0 / p.total());",
    ),
    "excess: all of q is common": (
        "distribution.cpp",
        "return std::max(mass - common, 0.0);",
        "return std::max(mass - 0.9 * common, 0.0);",
    ),
    "excess: listed tokens of q are forgotten": (
        "distribution.cpp",
        "subtract_listed(residual, q.ids(), q.weights(), q_scale, count_below(q, size));",
        "",
    ),
    "excess: what p has where q is listed": (
        "distribution.cpp",
        "const std::int32_t n = count_below(q, p.size());",
        "const std::int32_t n = count_below(q, p.size()) / 2;",
    ),
    "truncation: all equals are kept": (
        "truncation.cpp",
        "bar.equals-- > 0 ? 1 : 0",
        "1",
    ),
    "truncation: a nucleus of what min_p leaves": (
        "truncation.cpp",
        "by_mass ? rank : std::max(rank, ratio)",
        "std::max(rank, ratio)",
    ),
    "truncation: a nucleus of all where top_k cuts": (
        "truncation.cpp",
        "cut(mass_bar(limits.top_p * total));",
        "cut(mass_bar(limits.top_p * (by_rank ? 2 * total : total)));",
    ),
    "truncation: a nucleus is looked for once": (
        "truncation.cpp",
        "if (found >= nucleus) return;",
        "return;",
    ),
    "truncation: what is settled is forgotten": (
        "truncation.cpp",
        "const double sum = settled +",
        "const double sum =",
    ),
    "truncation: blocks are passed over too early": (
        "truncation.cpp",
        "(exponent - kSlack) / scale_",
        "(exponent + 2) / scale_",
    ),
    "race: weights do not count": (
        "race_kernels.cpp",
        "float exact(float x) const { return x; }",
        "float exact(float x) const { return x > 0; }",
    ),
    "race: losers are dropped too early": (
        "race_kernels.cpp",
        "kBar = 0.9999f * 0x1p-24f",
        "kBar = 2.0f * 0x1p-24f",
    ),
    "race: a row of words outlives its seed": (
        "race_noise.cpp",
        "if (row.seed != noise.seed)",
        "if (false)",
    ),
    "race: another noise where the ids are listed": (
        "race_noise.cpp",
        "w.word[id / 8 % 4]",
        "w.word[(id / 8 + 1) % 4]",
    ),
    "attached: the target's hidden state of a position too early": (
        "attached_decoder.cpp",
        "target_->hidden(position - 1)",
        "target_->hidden(std::max(position - 2, 0))",
    ),
    "attached: every draft on the target's hidden state": (
        "attached_decoder.cpp",
        "std::copy_n(hidden_.data(), hidden_.size(), features_.data());",
        "",
    ),
    "attached: a hidden state of the step before last": (
        "in_place_decoder.cpp",
        "hidden_end_ = hidden_begin_ = begin;",
        "if (hidden_end_ == 0) hidden_begin_ = begin;",
    ),
    "attached: columns one too far": (
        "attached_decoder.cpp",
        "seqlens_k_[0] = position;",
        "seqlens_k_[0] = position + 1;",
    ),
    "sampler: penalties see no draft": (
        "engine.cpp",
        "if (made_ > 0) see(engine_.proposal_.chain()[made_ - 1]);",
        "",
    ),
    "engine: one column too many is kept": (
        "engine.cpp",
        "if (drafter_) drafter_->rollback(drafted);",
        "if (drafter_) drafter_->rollback(drafted + 1);",
    ),
    "engine: one column too many is committed": (
        "engine.cpp",
        "cache.commit(kept);",
        "cache.commit(kept + 1);",
    ),
    "engine: rounds share their noise": (
        "engine.cpp",
        "const RoundNoise noise{options_.sampling.seed, "
        "static_cast<std::uint64_t>(sequence_.length())};\n    verdict",
        "const RoundNoise noise{options_.sampling.seed, 0};\n    verdict",
    ),
    "tree: only the first rejection counts": (
        "verify.cpp",
        "rest = excess_of(1.0, rest, q, q_total, scratch);",
        "",
    ),
    "tree: a rejected candidate keeps its share of q": (
        "verify.cpp",
        "q.total_without(tried, count)",
        "q.total()",
    ),
    "tree: siblings are tried with one noise": (
        "verify.cpp",
        "accept_noise(noise, i, count) * draft",
        "accept_noise(noise, i, 0) * draft",
    ),
    "tree: siblings are tried against p": (
        "verify.cpp",
        "draft < rest.probability(token)",
        "draft < row.probability(token)",
    ),
    "tree: the row after another sibling": (
        "verify.cpp",
        "p.leaf(s).sample(",
        "p.leaf(drafts.first(i)).sample(",
    ),
    "tree: draws with replacement": (
        "distribution.cpp",
        "std::exchange(weights[at[last]], 0.0f)",
        "weights[at[last]]",
    ),
    "tree: the first of the race twice": (
        "distribution.cpp",
        "winners[count] = id_at(best[count].index)",
        "winners[count] = id_at(best[count - 1].index)",
    ),
    "tree: the column of a sibling is not moved": (
        "engine.cpp",
        "target_->move_row(before + proposal_.depth() + verdict.sibling, last_draft);",
        "",
    ),
    "tree: keys are moved and values are not": (
        "kv_cache.cpp",
        "std::copy_n(values + from * column, column, values + to * column);",
        "",
    ),
    "tree: the hidden state is not moved": (
        "in_place_decoder.cpp",
        "if (from != to) std::copy_n(",
        "if (from < to) std::copy_n(",
    ),
    "tree: the drafter keeps the column of the chain": (
        "engine.cpp",
        "drafted = cache.length() + last_draft;",
        "",
    ),
    "tree: siblings follow each other": (
        "engine.cpp",
        "tree ? step_parents_.data() : nullptr",
        "nullptr",
    ),
    "tree: penalties do not see the sibling": (
        "engine.cpp",
        "see(engine_.proposal_.sibling(sibling));",
        "",
    ),
    "fixed shape: the row length of the new keys": (
        "scatter_kv_cache.cpp",
        "copy(source, width, target, past,",
        "copy(source, past, target, past,",
    ),
    "fixed shape: the column of the sink is written over": (
        "scatter_kv_cache.cpp",
        "std::max(length_, position_)",
        "length_",
    ),
    "fixed shape: what is forgotten stays in the mask": (
        "step_mask.cpp",
        "if (length < shown_) fill(length, shown_, values_.blocked);",
        "",
    ),
    "fixed shape: the token after the sink at position 0": (
        "fixed_decoder.cpp",
        "run_graph(tokens + known, n - known, position + known, head)",
        "run_graph(tokens + known, n - known, position, head)",
    ),
    "fixed shape: an argmax that penalties would have changed": (
        "sampler.cpp",
        "options_.logit_bias.empty() && !penalises()",
        "options_.logit_bias.empty()",
    ),
}

# Exits with 1 where a check fails. One smaller draw of every case, and a few streams.
CHECK = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import reference
from specdec import _core
from attached_toy import AttachedToy, TargetToy
from fixed_toy import FixedToy
from rules import cases, check, core_draw, core_verifier
from statistic import markov_p
from toy import Toy, near, plain_text, random_table, run_stream, stream_options
from tree_rules import check_tree

def fail(what):
    print("caught by", what)
    sys.exit(1)

def text_p(text):
    t = np.array([1, 2, *text])
    counts = np.bincount((t[:-2] * 12 + t[1:-1]) * 12 + t[2:], minlength=12**3)
    exact = np.exp(table.reshape(-1, 12).astype(np.float64))
    return markov_p(counts.reshape(144, 12), exact / exact.sum(1, keepdims=True))

rng = np.random.default_rng(8)
spreads = (4, 0.5, 1, 8, 1.2)
rows = np.stack([rng.normal(0, spread, 20_000) for spread in spreads]).astype(np.float32)
rows[2] = rows[2].round()
for truncation in (dict(top_k=7), dict(top_p=0.8), dict(top_p=0.8, min_p=0.05),
                   dict(top_k=60, top_p=0.7), dict(top_k=60, top_p=0.7, min_p=0.5)):
    options = _core.SamplingOptions()
    for option, value in truncation.items():
        setattr(options, option, value)
    for row, kept in zip(rows, _core.distribution_of(rows, options, [0], [])):
        if np.abs(kept - reference.distribution(row, **truncation)).max() > 1e-5:
            fail(f"truncation, {{truncation}}")
table = random_table(21, 12)
head = [0, 2, 3, 5, 8, 9, 11]
penalties = dict(repetition_penalty=1.2, presence_penalty=0.8)
for temperature in (0.0, 1.0):
    for extra in ({{}}, penalties):
        options = stream_options(
            rule="coupled", seed=2, temperature=temperature, max_tokens=200, **extra
        )
        plain = plain_text(table, [1, 2], options)
        for drafter in (Toy(near(table, 1)), Toy(near(table, 1)[:, :, head], head_ids=head)):
            engine = _core.Engine(Toy(table).decoder, _core.ModelDrafter(drafter.decoder))
            engine.set_draft_length(5)
            if run_stream(engine, [1, 2], options) != plain:
                fail("equality with plain decoding")
            drafted, accepted = engine.totals.drafted_at[0], engine.totals.accepted_at[0]
            # Else the text may be right and the drafts wasted.
            least = 0.5 if drafter.logits.shape[1] == 12 else 0.2
            if temperature and accepted < least * drafted:
                fail(f"acceptance: {{accepted}} of {{drafted}}")
target = TargetToy(table)
attached = AttachedToy(near(table, 1), target)
engine = _core.Engine(target.decoder, _core.AttachedDrafter(attached.decoder))
engine.set_draft_length(5)
for prompt in ([1, 2], [1, 3, 4], [1]):
    options = stream_options(temperature=0.0, max_tokens=100)
    if run_stream(engine, prompt, options) != plain_text(table, prompt, options):
        fail("equality of a target with an attached drafter")
    if engine.totals.accepted_at[0] < 0.5 * engine.totals.drafted_at[0]:
        fail("acceptance of an attached drafter")
fixed = FixedToy(table, sink=1, has_best=True), FixedToy(near(table, 1), sink=1, has_best=True)
engine = _core.Engine(fixed[0].decoder, _core.ModelDrafter(fixed[1].decoder))
engine.set_draft_length(5)
for prompt in ([1, 2], [1, 3, 4], [1]):
    for extra in ({{}}, penalties):
        options = stream_options(temperature=0.0, max_tokens=100, **extra)
        if run_stream(engine, prompt, options) != plain_text(fixed[0].table, prompt, options):
            fail("equality of models of fixed shape with the others")
for name, width in (("far, k=3", 2), ("far, k=3", 4), ("near, k=4", 3)):
    (case,) = (case for case in cases() if case.name == name)
    p_values, _, _ = check_tree(_core, "token", case, width, 20_000, 1)
    if min(p_values.values()) < 1e-5:
        fail(f"siblings, {{name}}: {{p_values}}")
moving = _core.InPlaceDecoder(
    vocabulary=4, head_ids=[], layers=2, kv_heads=2, head_dim=3, capacity=8, min_width=1,
    max_width=4, max_logit_rows=4, takes_rows=True, run=lambda width, first: None
)
columns = [array for name, array in moving.buffers().items() if "." in name]
for number, array in enumerate(columns):
    array[...] = number * 1000 + np.arange(array.size).reshape(array.shape)
expected = [array.copy() for array in columns]
moving.forward([1, 2, 3, 0], 4, [-1, 0, 0, 0])
moving.move_row(3, 1)
for array, before in zip(columns, expected):
    before[0, :, 1] = before[0, :, 3]
    if not np.array_equal(array, before):
        fail("columns that are moved")
far = random_table(9, 12, 2.5)
for rule, drafts, count in (("greedy", near(table, 1), 200), ("coupled", near(table, 1), 200),
                            ("token", far, 30_000)):
    for extra in ({{}}, penalties) if rule != "token" else ({{}},):
        target = TargetToy(table, takes_rows=True, capacity=count + 64)
        attached = AttachedToy(drafts, target)
        alone = Toy(drafts, capacity=count + 64)
        for drafter in (_core.AttachedDrafter(attached.decoder), _core.ModelDrafter(alone.decoder)):
            target.poison = alone.poison = rule != "token"
            engine = _core.Engine(target.decoder, drafter)
            engine.set_draft_length(3)
            engine.set_draft_width(4)
            options = stream_options(
                rule="token" if rule == "greedy" else rule, seed=2, max_tokens=count,
                temperature=float(rule != "greedy"), **extra
            )
            text = run_stream(engine, [1, 2], options)
            if rule != "token" and text != plain_text(table, [1, 2], options):
                fail(f"equality with siblings, {{rule}}")
            if rule == "coupled" and engine.totals.checked < 3.5 * sum(engine.totals.drafted_at):
                fail("candidates that are missing")
            known = alone.decoder.length
            if alone.keys[:known].tolist() != engine.tokens[:known]:
                fail("what a drafter keeps")
            if rule == "token" and text_p(text) < 1e-5:
                fail("text with siblings")
            target.decoder.truncate(0)
for rule in ("token", "block"):
    trimmed = Toy(far[:, :, head], head_ids=head, capacity=200_064)
    engine = _core.Engine(
        Toy(table, capacity=200_064).decoder, _core.ModelDrafter(trimmed.decoder)
    )
    engine.set_draft_length(3)
    options = stream_options(rule=rule, seed=3, max_tokens=200_000)
    if text_p(run_stream(engine, [1, 2], options)) < 1e-5:
        fail(f"text of a trimmed head, {{rule}}")
for rule in ("token", "block", "coupled"):
    for number, case in enumerate(cases()):
        outcome = check(
            case, core_verifier(_core, rule), core_draw(_core, rule, 1), 15_000, number + 1
        )
        if min(outcome.p_values.values()) < 1e-5:
            fail(f"{{rule}}, {{case.name}}: {{outcome.p_values}}")
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_objects(REPOSITORY / "csrc", tmp_path_factory.mktemp("objects"), FLAGS)


def checks_pass(objects: dict[str, Path], folder: Path) -> bool:
    link_package(list(objects.values()), folder)
    script = folder / "check.py"
    script.write_text(CHECK.format(tests=str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, timeout=300, capture_output=True, text=True
    )
    print(done.stdout, done.stderr[-600:])
    return done.returncode == 0


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="needs a C++ compiler"),
]


def test_the_core_as_it_is_passes(objects: dict[str, Path], tmp_path: Path) -> None:
    assert checks_pass(objects, tmp_path)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_caught(name: str, objects: dict[str, Path], tmp_path: Path) -> None:
    file, before, after = MUTATIONS[name]
    sources = tmp_path / "csrc"
    shutil.copytree(REPOSITORY / "csrc", sources)
    text = (sources / file).read_text()
    assert text.count(before) == 1, f"{file} has changed: write this mutation anew"
    (sources / file).write_text(text.replace(before, after))
    mutant = dict(objects)
    mutant[file] = tmp_path / "mutant.o"
    compile_object(sources / file, mutant[file], FLAGS)
    assert not checks_pass(mutant, tmp_path)
