"""Llama-2's shape, tiny and random, from a Hugging Face folder to text and context binaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.random_llama import SMALLEST_VOCAB, recipe_config, write_random_llama
from specdec.convert.huggingface_checkpoint import HuggingfaceCheckpoint
from specdec.cost_model import LAYOUTS, counted_step
from specdec.estimate import decoder
from specdec.snapdragon import DRAFTER_115M, LLAMA_2_7B
from tests.tiny_llama2 import tiny_llama2

WIDTHS = (4, 8)
PAST = 64


def test_random_checkpoint_is_read_and_the_same_each_time(tmp_path: Path) -> None:
    config = tiny_llama2()
    folders = [
        write_random_llama(tmp_path / name, config, seed=seed, shard_bytes=100_000)
        for name, seed in (("a", 1), ("again", 1), ("other", 2))
    ]
    assert len(list(folders[0].glob("*.safetensors"))) > 2
    first, again, other = (HuggingfaceCheckpoint(folder) for folder in folders)
    assert first.config == config
    down = [source.matrix("layers.1.down").dequantise() for source in (first, again, other)]
    assert np.array_equal(down[0], down[1])
    assert not np.array_equal(down[0], down[2])
    assert down[0].shape == (128, 256)
    assert 0.015 < down[0].std() < 0.03


def test_random_tokenizer_has_every_id_and_takes_any_text(tmp_path: Path) -> None:
    folder = write_random_llama(tmp_path / "model", tiny_llama2())
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SMALLEST_VOCAB + 40
    for text in ("ab cd", "Ünï 漢\n\t!"):
        assert tokenizer.decode(tokenizer.encode(text).ids).removeprefix(" ") == text


@pytest.mark.parametrize(
    ("name", "shape"),
    [("llama-2-7b-chat", LLAMA_2_7B), ("llama-2-chat-drafter-115m", DRAFTER_115M)],
)
def test_recipes_have_the_shapes_that_the_cost_model_is_told(name: str, shape: object) -> None:
    config = recipe_config(name)
    assert config.context == 4096
    assert decoder(name, layout="w4a16").shape == shape


def test_from_checkpoint_to_binaries_and_text(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_qnn")
    from specdec import Generator, Model, SamplingParams
    from specdec.convert.htp.folder import convert_htp
    from specdec.qnn.compile import Report, compile_model

    source = write_random_llama(tmp_path / "checkpoint", tiny_llama2())
    folder = convert_htp(
        source,
        tmp_path / "model",
        layout="w4a16",
        widths=WIDTHS,
        context=PAST,
        calibration=[[1, *range(3, 19)]],
        part_bytes=100_000,  # a part for each layer
        chat_template="llama-2",
    )
    generator = Generator(Model.load(folder, backend="qnn"))
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    assert len("".join(map(str, generator.stream("ab cd", greedy)))) > 0

    compiled = compile_model(folder, tmp_path / "compiled", "sm8650")
    report = Report.read(compiled)
    assert [part["name"] for part in report.parts] == ["layers0", "layers1", "logits+best"]
    for part in report.parts:
        assert part["binary_bytes"] > 0.5 * part["source_bytes"]
        for graph in part["graphs"]:
            assert graph["traffic"]["read"] > 0

    measured = decoder(str(compiled), layout="w8a16")
    assert measured.compiled
    assert (measured.layout, measured.past) == ("w4a16", PAST)
    counted = counted_step(measured.shape, LAYOUTS["w4a16"], past=PAST, width=8, parts=2)
    assert measured.steps[8].calls == counted.calls == 3
    assert measured.steps[8].operations == counted.operations
    assert measured.steps[8].bytes == pytest.approx(counted.bytes, rel=0.25)
