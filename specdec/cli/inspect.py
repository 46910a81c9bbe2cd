"""``specdec inspect``: what a model folder holds and how it behaves here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.cli.options import BackendOption, ThreadsOption
from specdec.cli.weights import describe_weights, weight_rows

if TYPE_CHECKING:
    from specdec.model import Model
    from specdec.model_folder import ModelConfig, ModelFolder


def inspect(
    model: Annotated[str, typer.Argument(help="A known name, or a model folder.")],
    threads: ThreadsOption = None,
    backend: BackendOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show a model: sizes, layout, tokenizer, source, and whether its rows are width-invariant."""
    from specdec.cli.models import find_folder
    from specdec.errors import BackendError, InvalidInputError
    from specdec.model import Model

    folder = find_folder(model)
    description = describe(folder)
    try:
        description |= describe_here(Model(folder, backend=backend, threads=threads))
    except (BackendError, InvalidInputError) as error:
        # What is compiled for another machine's chip can be looked at all the same.
        if not folder.is_compiled or backend != "auto":
            raise
        description["not_loaded"] = str(error)
    if as_json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        _print_description(description)


def describe(folder: ModelFolder) -> dict[str, Any]:
    """What a model folder holds, ready for JSON."""
    from specdec.tokenizer import Tokenizer

    config, tokenizer = folder.config, Tokenizer.load(folder)
    files: dict[str, Any] = folder.manifest["files"]
    return {
        "name": folder.name,
        "folder": str(folder.path),
        "role": folder.role,
        "drafter": describe_drafter(folder),
        "architecture": folder.manifest.get("architecture"),
        "parameters": count_parameters(config),
        "config": {name: getattr(config, name) for name in config.__dataclass_fields__},
        "layout": folder.layout,
        "weights": describe_weights(folder),
        "files": {name: entry["bytes"] for name, entry in files.items()},
        "tokenizer": {
            "vocabulary": tokenizer.vocabulary_size,
            "stop_tokens": {
                tokenizer.token_text(token): token for token in sorted(tokenizer.stop_ids)
            },
            "chat_template": folder.chat_template_path is not None,
        },
        "head": {"trimmed": config.head_size < config.vocab, "ids": config.head_size},
        "sampling": folder.sampling,
        "source": folder.source,
        "plan": describe_plan(folder),
    }


def describe_here(model: Model) -> dict[str, Any]:
    """How a loaded model behaves on this machine, ready for JSON."""
    import onnxruntime

    return {
        "backend": model.backend,
        "device": model.device,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": model.threads,
        # Simulated steps take seconds each, and an attached drafter's have one token.
        "width_invariant": (
            None if model.device == "NPU simulator" or model.is_attached else model.width_invariant
        ),
        "trees": model.takes_trees,
    }


def describe_drafter(folder: ModelFolder) -> dict[str, Any] | None:
    """The kind of a drafter, and the layers of its target that it shares; None for a target."""
    if folder.role != "drafter":
        return None
    layers = folder.config.target_layers
    if layers is None:
        return {"kind": "standalone"}
    return {"kind": "attached", "target_layers": list(layers)}


def describe_plan(folder: ModelFolder) -> dict[str, Any] | None:
    """The graphs of a model of fixed shape; None for another."""
    from specdec.htp_plan import HtpPlan
    from specdec.qnn.sink import load_sink

    if folder.backend != "qnn":
        return None
    plan = HtpPlan.read(folder.graph_path)
    sink = load_sink(folder, plan)
    return {
        "context": plan.past,
        "widths": list(plan.widths),
        "parts": {
            part.name: {"kind": part.kind, "layers": part.end_layer - part.first_layer}
            for part in plan.parts
        },
        "first_token": None if sink is None else sink.token,
        "compiled": folder.manifest["graph"].get("compiled"),
    }


def count_parameters(config: ModelConfig) -> int:
    """Weights of the network; a tied head shares the embedding's."""
    query, key_value = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.hidden * (2 * query + 2 * key_value)
    layer = attention + 3 * config.hidden * config.ffn + 2 * config.hidden
    head = 0 if config.tied_head else config.head_size * config.hidden
    embedding = config.vocab * config.hidden
    bridge = (2 * config.hidden + 2) * config.hidden
    return embedding + len(config.bridges) * bridge + config.layers * layer + config.hidden + head


def _print_description(model: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    config, tokenizer, head = model["config"], model["tokenizer"], model["head"]
    files = ", ".join(f"{name} {_megabytes(size)}" for name, size in model["files"].items())
    stops = ", ".join(f"{text} ({token})" for text, token in tokenizer["stop_tokens"].items())
    sampling = ", ".join(f"{name} {value}" for name, value in model["sampling"].items())
    source = model["source"]
    rows = {
        "name": f"{model['name']} ({model['role']})",
        **_drafter_rows(model["drafter"]),
        "folder": model["folder"],
        "architecture": f"{model['architecture']}, {model['parameters'] / 1e6:.1f} M parameters",
        "sizes": (
            f"{config['layers']} layers, hidden {config['hidden']}, {config['heads']} heads / "
            f"{config['kv_heads']} key-value heads of {config['head_dim']}, "
            f"feed-forward {config['ffn']}"
        ),
        "context": f"{config['context']} tokens, RoPE theta {config['rope_theta']:g}",
        "layout": model["layout"],
        **weight_rows(model["weights"]),
        **_plan_rows(model["plan"]),
        "files": f"{_megabytes(sum(model['files'].values()))}: {files}",
        "tokenizer": f"{tokenizer['vocabulary']} tokens; stops at {stops or 'none'}",
        "chat template": "yes" if tokenizer["chat_template"] else "none; prompts need --raw",
        "head": (
            f"trimmed to {head['ids']} of {config['vocab']} ids" if head["trimmed"]
            else f"whole, {head['ids']} ids"
        ) + (", tied to the embedding" if config["tied_head"] else ""),
        "sampling": sampling or "no recommendation",
        "source": ", ".join(f"{name} {value}" for name, value in source.items()) or "not recorded",
        **_rows_here(model),
    }  # fmt: skip
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _rows_here(model: dict[str, Any]) -> dict[str, str]:
    if "not_loaded" in model:
        return {"runs on": f"not this machine: {model['not_loaded']}"}
    runs_on = f"{model['device']} ({model['runtime']})"
    if model["backend"] == "cpu":
        runs_on += f", threads: {model['threads'] or 'one for each physical core'}"
    return {
        "runs on": runs_on,
        "width-invariant": (
            "of no concern: a step of an attached drafter has one token"
            if model["config"]["target_layers"] is not None
            else _WIDTH_INVARIANCE[model["role"], model["width_invariant"]]
        ),
        **_tree_rows(model),
    }


def _tree_rows(model: dict[str, Any]) -> dict[str, str]:
    if model["role"] != "target":
        return {}
    if not model["trees"]:
        return {"trees": "no: a step has one token for each position"}
    return {"trees": "yes: a step may have several candidates for one position"}


def _drafter_rows(drafter: dict[str, Any] | None) -> dict[str, str]:
    if drafter is None:
        return {}
    if drafter["kind"] == "standalone":
        return {"kind of drafter": "standalone: has a KV cache of its own"}
    layers = ", ".join(map(str, drafter["target_layers"]))
    return {
        "kind of drafter": (
            f"attached: reads its target's final hidden state, and shares the K/V of the target's "
            f"layers {layers}; for targets on the CPU"
        )
    }


def _plan_rows(plan: dict[str, Any] | None) -> dict[str, str]:
    if plan is None:
        return {}
    layers = [part["layers"] for part in plan["parts"].values() if part["kind"] == "layers"]
    heads = [name for name, part in plan["parts"].items() if part["kind"] != "layers"]
    first, compiled = plan["first_token"], plan["compiled"]
    return {
        "graphs": (
            f"steps of {' or '.join(map(str, plan['widths']))} tokens over a past of "
            f"{plan['context']}; parts of {', '.join(map(str, layers))} layers, heads: "
            f"{', '.join(heads)}"
        ),
        "texts begin with": "any token" if first is None else f"token {first}, added if need be",
        "compiled for": (
            "no chip" if compiled is None
            else f"{compiled['soc']} (Hexagon v{compiled['htp_arch']}) by QNN {compiled['qnn']}, "
            + ("weights shared" if compiled["shared_weights"] else "a binary for each graph")
        ),
    }  # fmt: skip


_WIDTH_INVARIANCE = {
    ("target", None): "not probed in the simulator",
    ("drafter", None): "not probed in the simulator (for a drafter it does not matter)",
    ("target", True): (
        "yes: a token's logits are the same bits alone and with any number of others in its step, "
        "so greedy text is the same token for token whatever the drafter and the draft length"
    ),
    ("target", False): (
        "NO, WARNING: on this machine a token's logits change in their last bits with the number "
        "of tokens in its step. Text still follows the target's distribution, but where two tokens "
        "are nearly equal, greedy text may depend on the draft length"
    ),
    ("drafter", True): "yes (for a drafter it does not matter)",
    ("drafter", False): "no (for a drafter it does not matter: the target decides every token)",
}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
