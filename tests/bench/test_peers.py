"""The orchestrator of bench/peers, with peers that only count."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bench.peers.contest import PREFILL, Question, Run, contest
from bench.peers.install import PeerUnavailableError, environment, made_once, run_quietly
from bench.peers.llama_cpp import MODES, build_options, is_built
from bench.peers.process import Worker
from bench.peers.protocol import UNTOLD, Clocked, Request
from bench.peers.report import Report, write_report
from bench.peers.roster import Absent
from bench.peers.sanity import Verdict
from bench.peers.summary import prefill_speeds, restless, speed_by_repeat, summarise

QUESTIONS = [
    Question("chat", 0, (5, 6)),
    Question("code", 0, (9,)),
    Question(PREFILL, 0, tuple(range(40))),
]


@pytest.fixture
def hire(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def one(name: str = "fake", **config: Any) -> Worker:
            log = tmp_path / f"{name}.log"
            module = "tests.bench.fake_peer"
            return stack.enter_context(Worker(Path(sys.executable), module, config, log))

        yield one


def run_of(contestant: str, **fields: Any) -> Run:
    values: dict[str, Any] = {
        "kind": "chat",
        "prompt": 0,
        "repeat": 0,
        "temperature": 0.0,
        "tokens": tuple(range(11)),
        "first": 1,
        "first_seconds": 0.5,
        "seconds": 1.5,
        "others": 0.0,
    }
    return Run(contestant=contestant, **values | fields)


def test_a_worker_answers_though_its_libraries_print(hire: Any) -> None:
    worker = hire(step=4)
    answer = worker.generate(Request([5], 10, 0.0, 1))
    assert answer["tokens"] == list(range(6, 16))
    assert answer["first"] == 4
    assert answer["figures"] == {"rounds": 3}
    assert 0 < answer["first_seconds"] <= answer["seconds"]
    assert worker.versions == {"fake": "1.0"}
    assert worker.peak_bytes > 1e6
    assert worker.cpu_seconds > 0


def test_a_worker_that_cannot_load_says_why(hire: Any) -> None:
    with pytest.raises(PeerUnavailableError, match="ValueError: no such model"):
        hire(broken=True)


def test_a_worker_goes_on_after_an_error_and_its_death_is_told(hire: Any) -> None:
    worker = hire(fails_at=2, dies_at=3)
    with pytest.raises(PeerUnavailableError, match="RuntimeError: out of luck"):
        worker.generate(Request([5], 2, 0.0, 1))
    assert worker.generate(Request([5], 1, 0.0, 1))["tokens"] == [6]
    with pytest.raises(PeerUnavailableError, match="the process ended with 3"):
        worker.generate(Request([5], 3, 0.0, 1))


def test_a_contest_gives_everyone_the_same_and_the_first_turn_goes_round(hire: Any) -> None:
    workers = {"a": hire("a"), "b": hire("b", step=3)}
    runs = list(
        contest(
            workers,
            QUESTIONS,
            temperatures=[0.0, 1.0],
            max_tokens=6,
            repeats=2,
            on_failure=lambda name, reason: pytest.fail(reason),
        )
    )
    assert len(runs) == 2 * 2 * (2 * 2 + 1)
    assert {run.tokens for run in runs if run.kind == "chat"} == {tuple(range(7, 13))}
    assert all(len(run.tokens) == 1 for run in runs if run.kind == PREFILL)
    beginners = [run.contestant for run in runs[::2]]
    assert beginners == ["a", "b"] * 5
    assert not restless(runs, most=0.5)


def test_a_contestant_that_fails_drops_out_and_the_rest_go_on(hire: Any) -> None:
    failures: list[tuple[str, str]] = []
    runs = list(
        contest(
            {"good": hire("good"), "bad": hire("bad", fails_at=6)},
            QUESTIONS,
            temperatures=[0.0],
            max_tokens=6,
            repeats=1,
            on_failure=lambda name, reason: failures.append((name, reason)),
        )
    )
    assert failures == [("bad", "RuntimeError: out of luck")]
    assert [run.contestant for run in runs].count("good") == 3


def test_speeds_leave_out_the_first_tokens_and_what_came_before_them() -> None:
    slow = run_of("peer", seconds=2.5)  # 10 tokens in 2 s
    fast = run_of("peer", repeat=1)  # 10 in 1 s
    single = run_of("peer", tokens=(1,), prompt=1)
    assert speed_by_repeat([slow, fast, single]) == [5.0, 10.0]


def test_a_summary_compares_with_the_best_peer_alone() -> None:
    runs = [
        run_of("specdec, plain", seconds=1.0, figures={"rounds": 10}),  # 20 tokens/s
        run_of("peer, plain"),  # 10
        run_of("peer, draft", seconds=0.9),  # 25
        run_of("specdec, plain", kind="code", seconds=0.75),
        run_of("peer, plain", kind="code"),
    ]
    summaries = {(s.kind, s.contestant): s for s in summarise(runs, ["specdec, plain"])}
    chat = summaries["chat", "specdec, plain"]
    assert chat.tokens_per_second == pytest.approx(20)
    assert chat.over_best_peer == pytest.approx(20 / 25)
    assert chat.accepted_per_round == 1.1
    assert summaries["code", "specdec, plain"].over_best_peer == pytest.approx(4)
    assert summaries["all", "peer, plain"].texts == 2
    assert list(summaries)[-1][0] == "all"


def test_prefill_is_the_prompt_over_the_time_to_the_first_token() -> None:
    runs = [run_of("a", kind=PREFILL, tokens=(1,), first_seconds=0.25), run_of("a")]
    assert prefill_speeds(runs, {0: 512}) == {"a": [2048.0]}


def test_a_clock_counts_what_came_first_and_when() -> None:
    times = iter([10.0, 11.0, 13.0])
    clocked = Clocked(lambda: next(times))
    for tokens in ([], [1, 2], [3]):
        clocked(tokens)
    answer = clocked.answer({})
    assert (answer["first"], answer["first_seconds"], answer["seconds"]) == (2, 1.0, 3.0)


def test_texts_are_insane_when_the_target_finds_them_far_less_likely() -> None:
    assert Verdict("a", 0.0, nats=0.6, reference_nats=0.3, error=0.1, agreement=20).is_sane
    assert not Verdict("b", 0.0, nats=2.6, reference_nats=0.3, error=0.1, agreement=0).is_sane
    # A few tokens that were drawn say little.
    assert Verdict("c", 1.0, nats=2.6, reference_nats=1.3, error=0.4, agreement=None).is_sane


def test_a_report_has_every_contestant_and_who_was_absent(tmp_path: Path) -> None:
    runs = [run_of("specdec, plain"), run_of("peer, plain", seconds=3.5, others=0.3)]
    report = Report(
        runs=runs,
        questions=QUESTIONS,
        own=["specdec, plain"],
        memory={"specdec, plain": 300_000_000, "peer, plain": 500_000_000},
        versions={"specdec, plain": {}, "peer, plain": {"peer": "2.1"}},
        absent=[Absent("other", "there is no wheel")],
        verdicts=[Verdict("peer, plain", 0.0, 2.6, 0.3, 0.1, 0)],
        machine={"cpu": "a processor"},
        threads=2,
        command="python -m bench.peers",
    )
    write_report(report, tmp_path)
    text = (tmp_path / "peers.md").read_text("utf-8")
    for expected in (
        "| **specdec, plain** | 10 (10 to 10) | 3.00 x |",
        "| 500 |",
        "other: there is no wheel",
        "finds unlikely: peer, plain",
        "1 of 2 runs",
        "peer 2.1",
    ):
        assert expected in text
    figures = json.loads((tmp_path / "peers.json").read_text("utf-8"))
    assert figures["runs"][0]["tokens"] == 11
    assert (tmp_path / "peers.svg").stat().st_size > 1000


def test_folders_are_made_once_and_anew_when_made_of_something_else(tmp_path: Path) -> None:
    made: list[str] = []

    def make(folder: Path) -> None:
        made.append(folder.name)
        (folder / "content").write_text("x", encoding="utf-8")
        if len(made) == 2:
            raise PeerUnavailableError("broke off")

    def once(of: str) -> None:
        made_once(tmp_path / "folder", {"of": of}, make, print)

    once("a")
    once("a")
    assert len(made) == 1
    with pytest.raises(PeerUnavailableError):
        once("b")
    once("b")  # what was half made does not count
    assert len(made) == 3


def test_a_command_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('this went wrong'); raise SystemExit(4)"]
    with pytest.raises(PeerUnavailableError, match=r"ended with 4.*this went wrong"):
        run_quietly(command, log=tmp_path / "log")
    with pytest.raises(PeerUnavailableError, match="'no-such-compiler' cannot be run"):
        run_quietly(["no-such-compiler"], log=tmp_path / "log")


def test_llama_cpp_is_built_for_the_processor_and_never_with_amx(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx avx2 avx512f amx_int8 amx_tile\n", encoding="utf-8")
    options = build_options(cpuinfo)
    assert "-DGGML_AMX_INT8=OFF" in options
    if "-DGGML_NATIVE=OFF" in options:  # x86-64
        assert "-DGGML_AVX512=ON" in options
        assert "-DGGML_AVX512_VNNI=OFF" in options


def test_llama_cpp_is_asked_through_its_server(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    script = Path(__file__).with_name("fake_llama_server.py").read_text("utf-8")
    server.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    server.chmod(0o755)
    config = {
        "mode": MODES["draft k=2"],
        "threads": 1,
        "context": 64,
        "server": str(server),
        "target_gguf": "target.gguf",
        "drafter_gguf": "drafter.gguf",
    }
    with Worker(Path(sys.executable), "bench.peers.llama_cpp", config, tmp_path / "log") as worker:
        answer = worker.generate(Request([3, 4], 5, 0.0, 1))
        assert worker.versions["llama.cpp"] == "b1-fake"
        pid = worker.pid
    assert answer["tokens"] == [5, 6, 8, 9, UNTOLD]  # it keeps 7 for itself
    assert answer["figures"] == {"predicted_ms": 4.0}
    arguments = json.loads((tmp_path / "arguments.json").read_text("utf-8"))
    assert arguments[arguments.index("--spec-draft-n-max") + 1] == "2"
    assert not Path(f"/proc/{pid}").exists()


def test_a_peer_that_is_not_installed_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECDEC_HOME", str(tmp_path))
    with pytest.raises(PeerUnavailableError, match="not installed"):
        environment("some-peer", ["some-package"], print, make_missing=False)
    assert not is_built()
