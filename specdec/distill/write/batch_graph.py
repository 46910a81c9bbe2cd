"""The CPU graph for many conversations: its rows become one position of each.

A graph of a fused layout takes rows of many sequences as it is. The others read tokens [1, S], S
positions of one. Only attention knows that: every other node treats rows alike and apart. So the
attention nodes alone are given [S, 1], S sequences of one position, and caches with S entries; the
layouts' linears run as they are. The best candidates are picked inside the graph, since logits
[S, vocabulary] would be slow to carry out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from specdec.convert.checkpoint import ModelConfig, ModelSource
from specdec.convert.cpu_graph import GRAPH_FILE, write_cpu_graph
from specdec.convert.layouts import LAYOUTS

CANDIDATE_LOGITS, CANDIDATE_IDS = "candidate_logits", "candidate_ids"


def write_batch_graph(source: ModelSource, layout: str, folder: Path, candidates: int) -> Path:
    """Write the graph of ``source`` for batches; returns its file, weights beside it.

    Inputs: ``tokens`` int64 [1, S]; ``seqlens_k`` int32 [S], each sequence's length without the new
    token; ``total_length`` int32 [], the longest one with it; ``first_logit_row`` int64 [1], 0;
    ``past_key.{i}`` and ``past_value.{i}`` float32 [S, kv_heads, capacity, head_dim]. Outputs:
    ``candidate_logits`` float32 and ``candidate_ids`` int64 [1, S, candidates], best first, and
    ``present_key.{i}``, ``present_value.{i}``, to be bound to the memory of the past. A graph of a
    fused layout has ``rows`` for the two lengths, and K/V as ``specdec.convert.cpu_graph`` says.
    """
    write_cpu_graph(source, LAYOUTS[layout], folder, name="batch")
    path = folder / GRAPH_FILE
    model = onnx.load(path, load_external_data=False)
    if not LAYOUTS[layout].fused:  # whose graph knows sequences
        _split_sequences(model.graph, source.config)
    _pick_candidates(model.graph, candidates)
    onnx.save(model, path)
    return path


def _split_sequences(graph: onnx.GraphProto, config: ModelConfig) -> None:
    for value in [*graph.input, *graph.output]:
        if value.name.startswith(("past_", "present_", "seqlens_k")):
            value.type.tensor_type.shape.dim[0].dim_param = "S"
    mixed = config.heads * config.head_dim
    packed = mixed + 2 * config.kv_heads * config.head_dim
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1, 1, packed], np.int64), "shape.split"),
            numpy_helper.from_array(np.array([1, -1, mixed], np.int64), "shape.join"),
        ]
    )
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "GroupQueryAttention":
            nodes.append(node)
            continue
        packed_name, mixed_name = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{packed_name}.split", f"{mixed_name}.split"
        nodes += [
            helper.make_node("Reshape", [packed_name, "shape.split"], [node.input[0]]),
            node,
            helper.make_node("Reshape", [node.output[0], "shape.join"], [mixed_name]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def _pick_candidates(graph: onnx.GraphProto, candidates: int) -> None:
    graph.initializer.append(
        numpy_helper.from_array(np.array([candidates], np.int64), "candidates")
    )
    graph.node.append(
        helper.make_node(
            "TopK", ["logits", "candidates"], [CANDIDATE_LOGITS, CANDIDATE_IDS], axis=-1
        )
    )
    kept = [value for value in graph.output if value.name.startswith("present")]
    del graph.output[:]
    shape: list[str | int | None] = [1, "S", candidates]
    graph.output.extend(
        [
            helper.make_tensor_value_info(CANDIDATE_LOGITS, TensorProto.FLOAT, shape),
            helper.make_tensor_value_info(CANDIDATE_IDS, TensorProto.INT64, shape),
            *kept,
        ]
    )
