"""Fixed-shape graphs whole on the NPU (simulated here) against the CPU provider's run of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime_qnn")

from specdec import QnnOptions
from specdec.convert.htp.folder import convert_htp
from specdec.qnn.sessions import open_session
from tests.convert.htp.chain import Chain
from tests.tiny_gguf import DEFAULT_VOCAB

TOKENS = [1, *np.random.default_rng(5).integers(2, DEFAULT_VOCAB, 40).tolist()]
CALIBRATION = [
    np.random.default_rng(seed).integers(2, DEFAULT_VOCAB, 60).tolist() for seed in range(6, 10)
]
WIDTHS = (8, 32)


# The largest error of any logit, in standard deviations of the logits. Seen: w8a16 .017, w4a16
# .063, w4a16-b32 .018, w4a16-b32m .028, w4fp16-b32m .011, fp16 .022.
@pytest.mark.parametrize(
    ("layout", "tolerance"),
    [
        ("w8a16", 0.05),
        ("w4a16", 0.15),
        ("w4a16-b32", 0.1),
        ("w4a16-b32m", 0.1),
        ("w4fp16-b32m", 0.05),
        ("fp16", 0.05),
    ],
)
def test_the_npu_computes_what_the_cpu_computes(
    tmp_path: Path, tiny_gguf: Path, layout: str, tolerance: float
) -> None:
    """``open_session`` takes no graph of which a node would fall back to the CPU."""
    folder = convert_htp(
        tiny_gguf,
        tmp_path / "model",
        layout=layout,
        widths=WIDTHS,
        context=64,
        calibration=CALIBRATION,
    )
    npu = Chain(folder, partial(open_session, options=QnnOptions()))
    expected = Chain(folder).logits(TOKENS, 8)
    found = npu.logits(TOKENS, 8)
    error = np.abs(found - expected).max() / np.std(expected)
    assert error < tolerance
    npu.truncate()
    wide = npu.logits(TOKENS, 32)
    if "fp16" in layout:  # sums in float16 depend on where their terms stand
        np.testing.assert_allclose(wide, found, atol=tolerance * np.std(expected))
    else:
        np.testing.assert_array_equal(wide, found)
    npu.truncate()
    start = npu.length
    best = npu.step(TOKENS[start : start + 8], 8, head="best")
    np.testing.assert_array_equal(best, found[start : start + 8].argmax(axis=-1))
    npu.truncate()
    generator = np.random.default_rng(3)
    for tensor in (*npu.keys, *npu.values):  # position 0 stays, whatever lies behind is hidden
        junk = generator.integers(0, 256, tensor.shape).astype(np.uint8)
        hidden = np.ones(tensor.shape, bool)
        hidden[..., :1] = False
        hidden[:, :, :1] = False
        tensor[hidden] = junk[hidden].astype(tensor.dtype)
    changed = [*TOKENS[start : start + 4], 7, 8, 9, 10]
    rows = npu.step(changed, 8)
    np.testing.assert_array_equal(rows[:4], found[start : start + 4])
