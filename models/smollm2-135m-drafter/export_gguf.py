"""Writes the drafter as a GGUF file with its recipe, and reads it back."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from llama_torch import LINEARS, Llama, LlamaConfig, permute_rope, read_tensors
from torch import Tensor

NAME = "smollm2-135m-drafter"
TARGET = "smollm2-135m"


def write_drafter(path: Path, model: Llama, head_ids: np.ndarray) -> None:
    """Write the layers as Q8_0; embedding and head rows come from the target."""
    config = model.config
    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, "llama")
    writer.add_name(NAME)
    writer.add_block_count(len(model.blocks))
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_vocab_size(config.vocab)
    writer.add_string("specdec.target", TARGET)
    q8 = GGMLQuantizationType.Q8_0
    for i, block in enumerate(model.blocks):
        for name in ("attn_norm", "ffn_norm"):
            weight = getattr(block, name).detach().float().numpy()
            writer.add_tensor(f"blk.{i}.{name}.weight", weight)
        for name in LINEARS:
            weight = getattr(block, name).detach().float()
            if name == "attn_q":
                weight = permute_rope(weight, config.heads)
            elif name == "attn_k":
                weight = permute_rope(weight, config.kv_heads)
            data = quantize(np.ascontiguousarray(weight.numpy()), q8)
            writer.add_tensor(f"blk.{i}.{name}.weight", data, raw_dtype=q8)
    writer.add_tensor("output_norm.weight", model.output_norm.detach().float().numpy())
    writer.add_tensor("specdec.head_ids", np.ascontiguousarray(head_ids, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def write_recipe(drafter: Path) -> None:
    """Write ``recipe.json`` beside the drafter, with its checksum."""
    data = drafter.read_bytes()
    recipe = {
        "name": NAME,
        "description": "Drafter for SmolLM2-135M-Instruct, distilled from text it wrote itself; "
        "it takes its embedding and head rows from the target.",
        "license": "Apache-2.0",
        "role": "drafter",
        "target": TARGET,
        "source": {
            "file": drafter.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        },
    }
    part = drafter.with_name("recipe.json.part")
    part.write_text(json.dumps(recipe, indent=2) + "\n")
    part.rename(drafter.with_name("recipe.json"))


def load_drafter(path: Path, target: Path) -> tuple[Llama, Tensor]:
    """Read a drafter with its target's embedding; also its head ids."""
    reader = GGUFReader(path)
    tensors = read_tensors(reader)
    for tensor in GGUFReader(target).tensors:
        if tensor.name == "token_embd.weight":
            embedding = dequantize(tensor.data, tensor.tensor_type)
            tensors[tensor.name] = torch.from_numpy(np.array(embedding, dtype=np.float32))
    head_ids = tensors["specdec.head_ids"].long()
    return Llama(LlamaConfig.from_gguf(reader), tensors), head_ids


def main() -> None:
    """Export a training checkpoint (or, without one, the cut layers)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True, help="the target's GGUF file")
    parser.add_argument("--checkpoint", type=Path, required=True, help="written by train.py")
    parser.add_argument("--out", type=Path, required=True, help="the drafter.gguf to write")
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=True)
    model = Llama.from_gguf(args.target, state["layers"])
    model.load_state_dict(state["model"])
    write_drafter(args.out, model, state["head_ids"].numpy())
    write_recipe(args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes, {state['tokens']} tokens seen")


if __name__ == "__main__":
    main()
