"""Writes a checkpoint as an ONNX graph for the CPU provider.

Inputs: ``tokens`` int64 [1, S]; ``seqlens_k`` int32 [1], the total length - 1; ``total_length``
int32 [], past + S; ``first_logit_row`` int64 [1]; ``past_key.{i}`` and ``past_value.{i}`` float32
[1, kv_heads, capacity, head_dim]. Outputs: ``logits`` float32 [1, S - first_logit_row, head_size];
``hidden`` float32 [1, S, hidden], what the head reads, of every row; and ``present_key.{i}``,
``present_value.{i}``, to be bound to the memory of the past: the new columns are written in place.

A fused layout's graph takes, in place of the two lengths, ``rows`` int32 [4, S]: of each token the
sequence, the sequence's committed length, the column that the token's K/V are written to, and the
row before it on its path in this step (-1: the last committed column). Its K/V of any number of
sequences are one input, ``past`` float16 [layers, 2, sequences, kv_heads, capacity, head_dim], of
each layer the keys, in tiles of 32 columns, and the values; and one output, ``present``. Where
most of its head is in 6 bits it may be given ``best_only`` int64 [1]: with 1 it writes the index of
each row's greatest logit to ``best`` int32 [1, S - first_logit_row], the first of equal ones and -1
where they are no finite numbers, and what is in ``logits`` means nothing. Its operators are in the
core's library, ``specdec._core``.

An attached drafter has one more input, ``features`` float32 [1, S, hidden]: for each token the
``hidden`` of the position before it, the target's or, of a token that the drafter proposed itself,
the drafter's. Its ``past_key.{i}`` and ``past_value.{i}`` are the target's of layer
``target_layers[i]``; a fused layout's ``past`` is the target's.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from specdec.convert.checkpoint import Checkpoint
from specdec.convert.decoder_graph import DecoderGraph, Progress
from specdec.convert.external_data import ExternalData
from specdec.convert.fused_graph import FusedGraph
from specdec.convert.graph import Graph
from specdec.convert.layouts import Layout

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
GRAPH_VERSION = 9  # raise it with every change of what is written: pulled models are then rebuilt


def write_cpu_graph(
    checkpoint: Checkpoint,
    layout: Layout,
    folder: Path,
    *,
    name: str,
    progress: Progress = lambda fraction: None,
) -> None:
    """Writes ``model.onnx`` and ``model.onnx.data``, one tensor of the checkpoint at a time."""
    with ExternalData(folder / DATA_FILE) as data:
        graph = Graph(name, data)
        kind = FusedGraph if layout.fused else DecoderGraph
        kind(checkpoint, layout, graph).write(progress)
        onnx.save(graph.model(), folder / GRAPH_FILE)
