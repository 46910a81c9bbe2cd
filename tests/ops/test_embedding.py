"""The op Embedding: rows of a packed matrix."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from specdec import _core
from tests.ops.linear_graphs import FORMATS, Packed, embedding_op, random_matrix
from tests.ops.one_graph import node_of

VOCABULARY = 75  # not whole tiles


def dequantised(packed: Packed) -> np.ndarray:
    low = packed.low[:, :, None]
    values = packed.scale[:, :, None] * packed.whole.astype(np.float32)
    values = values + low if packed.bits == 4 else values
    return (packed.unit[:, None, None] * values).reshape(len(packed.whole), -1)


@pytest.mark.parametrize("form", FORMATS)
def test_definition(form: int | str) -> None:
    packed = random_matrix(1, form, VOCABULARY, 96)
    tokens = np.random.default_rng(2).permutation(VOCABULARY)
    (found,) = embedding_op(packed).session().run(None, {"tokens": tokens[None]})
    np.testing.assert_array_equal(found[0], dequantised(packed)[tokens])
    (none,) = embedding_op(packed).session().run(None, {"tokens": tokens[None, :0]})
    assert none.shape == (1, 0, 96)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_other_tokens_are_refused(token: int) -> None:
    session = embedding_op(random_matrix(1, 8, VOCABULARY, 96)).session()
    with pytest.raises(Exception, match=f"Embedding: token {token} is not below 75"):
        session.run(None, {"tokens": np.array([[3, token]])})


def test_other_shapes_are_refused() -> None:
    op = replace(embedding_op(random_matrix(1, 8, VOCABULARY, 96)))
    free = replace(op, inputs={**op.inputs, "tokens": ["B", "S"]})
    with pytest.raises(Exception, match=r"tokens has shape \[2, 1\]; it must be \[1, S\]"):
        free.session().run(None, {"tokens": np.array([[3], [4]])})


def mapped_kilobytes(file: Path) -> int:
    """Resident pages of a file that is mapped into this process."""
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return resident


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_table_that_is_looked_up_in_does_not_stay_in_memory(tmp_path: Path) -> None:
    packed = random_matrix(3, 8, 30_000, 576)
    data = tmp_path / "table.data"
    tensors, offset = [], 0
    with data.open("wb") as file:
        for name, values, kind in (
            ("codes", packed.codes, TensorProto.UINT8),
            ("scales", packed.scales, TensorProto.UINT16),
        ):
            tensor = TensorProto(name=name, data_type=kind, dims=values.shape)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": data.name, "offset": offset, "length": values.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset = -(-(file.write(values.tobytes()) + offset) // 4096) * 4096
            file.truncate(offset)
            file.seek(offset)
    graph = helper.make_graph(
        [node_of("Embedding", ["tokens", "codes", "scales"], ["y"], bits=8, outputs=30_000)],
        "table",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "S"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("specdec", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    (tmp_path / "table.onnx").write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.register_custom_ops_library(_core.__file__)
    session = ort.InferenceSession(str(tmp_path / "table.onnx"), options)

    assert str(data) in Path("/proc/self/maps").read_text()
    tokens = np.random.default_rng(4).permutation(30_000)[:2_000]
    most = 0
    found = []
    for part in np.split(tokens, 40):
        found.append(session.run(None, {"tokens": part[None]})[0][0])
        most = max(most, mapped_kilobytes(data))
    np.testing.assert_array_equal(np.concatenate(found), dequantised(packed)[tokens])
    assert most <= 1_000, f"{most} kB of {offset // 1024}"
