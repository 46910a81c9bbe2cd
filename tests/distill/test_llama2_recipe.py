"""The way to llama-2-chat-drafter-115m, from a Hugging Face folder to drafts, scaled down.

Goel et al. 2403.00858: a drafter of 4 layers with a width and an embedding of its own, under the
target's tokenizer, that learns from text which the target wrote.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.random_llama import SMALLEST_VOCAB, write_random_llama
from specdec import Generator, Model, SamplingParams
from specdec.convert import convert
from specdec.convert.checkpoint import ModelConfig
from specdec.convert.source import open_source
from specdec.distill.architecture import plan_drafter
from specdec.distill.options import Options
from specdec.distill.pipeline import distill
from specdec.errors import InvalidInputError
from specdec.model_folder import ModelFolder
from specdec.recipe import UserSource, load_recipe
from tests.tiny_llama2 import tiny_llama2


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_llama2(layers=6, hidden=192, heads=6, ffn=512, context=512)
    return write_random_llama(tmp_path_factory.mktemp("checkpoint") / "llama-2-tiny-chat", config)


def test_from_a_folder_to_drafts(target: Path, tmp_path: Path) -> None:
    options = Options(
        size="300k",
        chat_template="llama-2",
        text_tokens=5000,
        tokens=1500,
        length=64,
        conversations=96,
        batch_tokens=512,
        loss="tvd++",
        on_policy=0.2,
        on_policy_tokens=8,
        warmup=2,
        dtype="float32",
        prompts_per_kind=0,
    )
    said: list[str] = []
    output = distill(str(target), tmp_path / "drafter", options, say=said.append)
    assert any("standalone" in line for line in said)
    folder = ModelFolder.open(output)
    assert folder.config.hidden < 192
    assert folder.config.head_size == folder.config.vocab == SMALLEST_VOCAB + 40
    assert not folder.config.tied_head
    record = folder.manifest["distillation"]
    assert record["loss"]["kind"] == "tvd++"
    before, after = record["curve"]["acceptance"][0][0], record["curve"]["acceptance"][-1][0]
    assert after > before
    float_, int8 = (
        record["acceptance"]["held_out"][name]["acceptance"][0] for name in ("float", "int8")
    )
    assert int8 == pytest.approx(float_, rel=0.01)

    # What a user would bring for the recipe: a folder that converts, and drafts for the target.
    source = open_source(tmp_path / "drafter.work" / "drafter", None)
    assert source.config.hidden == folder.config.hidden
    whole = convert(target, tmp_path / "target", chat_template="llama-2")
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    pair, alone = Generator(Model.load(whole), Model.load(output)), Generator(Model.load(whole))
    assert pair.generate("ab cd", greedy).tokens == alone.generate("ab cd", greedy).tokens


def test_the_shape_of_115m_follows_from_its_size() -> None:
    """Asked for 115 million parameters, Llama 2 7B gets the drafter of the paper's shape."""
    source = load_recipe("llama-2-7b-chat").source
    assert isinstance(source, UserSource)
    config = ModelConfig(context=4096, rope_theta=1e4, norm_eps=1e-5, **source.shape)
    plan = plan_drafter(config, kind="standalone", size=115_000_000)
    wanted = load_recipe("llama-2-chat-drafter-115m").source
    assert isinstance(wanted, UserSource)
    found = {name: getattr(plan.config, name) for name in wanted.shape}
    assert found == dict(wanted.shape)


def test_an_attached_drafter_needs_a_gguf_file(target: Path, tmp_path: Path) -> None:
    options = Options(kind="attached", chat_template="llama-2", text_tokens=500, length=64)
    with pytest.raises(InvalidInputError, match="give that, or make a standalone one"):
        distill(str(target), tmp_path / "drafter", options)
