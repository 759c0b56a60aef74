"""A workflow with every node of the pack, as ComfyUI's page saves it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from tests.samples.exact import exact_tensor, exact_weights

# Files that the workflow names. The checkpoint is the demo's; the others are made by `generate.py`.
CHECKPOINT, DELTA = "sara-demo-digits.safetensors", "sample.safetensors"
TOY_BASE, TOY_TUNED, TOY_LORA = "sample-base.safetensors", "sample-tuned.safetensors", "sample-lora.safetensors"


class Node(NamedTuple):
    """links: name of an input → (key of a node, name of its output); widgets: what differs from the defaults"""

    type: str
    links: dict[str, tuple[str, str]] = {}
    widgets: dict[str, Any] = {}


NODES = {
    "checkpoint": Node("CheckpointLoaderSimple", {}, {"ckpt_name": CHECKPOINT}),
    "caption": Node("CLIPTextEncode", {"clip": ("checkpoint", "CLIP")}, {"text": "a handwritten digit three"}),
    "latent": Node("EmptyLatentImage", {}, {"width": 64, "height": 64}),
    "options": Node("SaRATrainOptions", {"unconditional": ("caption", "CONDITIONING")}, {
        "optimizer": "Adam", "schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.01,
        "noise_levels": "logit-normal", "noise_level_mean": 0.5, "noise_level_std": 0.8, "min_snr_gamma": 5.0,
        "caption_dropout": 0.1, "snapshot_every": 1, "snapshots_kept": 2, "checkpoint_depth": 2,
    }),
    "samples": Node("SaRATrainSamples", {"positive": ("caption", "CONDITIONING"), "vae": ("checkpoint", "VAE")},
                    {"every": 2, "steps": 1, "cfg": 1.5}),
    "train": Node("SaRATrain", {
        "model": ("checkpoint", "MODEL"), "latents": ("latent", "LATENT"), "positive": ("caption", "CONDITIONING"),
        "options": ("options", "options"), "samples": ("samples", "samples"),
    }, {"select_by": "count", "count": 20_000, "steps": 3, "learning_rate": 0.001, "adjust_at": "0.4", "seed": 7,
        "exclude": "to_v", "low_rank_weight": 0.0001}),
    "save": Node("SaRASave", {"delta": ("train", "delta")},
                 {"filename_prefix": "sara/sampled", "values": "bf16", "title": "A sample", "tags": "a, b"}),
    "load": Node("SaRALoader", {"model": ("checkpoint", "MODEL")}, {"sara_name": DELTA, "strength": 0.8}),
    "apply": Node("SaRAApply", {"model": ("load", "MODEL"), "delta": ("save", "delta")}, {"strength": -0.5}),
    "merge": Node("SaRAMerge", {"deltas.delta_1": ("train", "delta"), "deltas.delta_2": ("load", "delta")},
                  {"weights": "0.6, -0.4", "method": "ties", "keep": 40.0, "seed": 3, "blocks": "output_blocks = 0.5"}),
    "bake": Node("SaRABake", {"delta": ("merge", "delta")},
                 {"ckpt_name": CHECKPOINT, "strength": 0.9, "filename_prefix": "checkpoints/sampled"}),
    "extract": Node("SaRAExtract", {}, {"base_name": TOY_BASE, "tuned_name": TOY_TUNED, "density": 5.0}),
    "inspect": Node("SaRAInspect", {"delta": ("merge", "delta"), "model": ("checkpoint", "MODEL")},
                    {"threshold": 0.001}),
    "convert": Node("SaRAConvert", {}, {"file_name": TOY_LORA, "base_name": TOY_BASE, "density": 20.0, "rank": 8,
                                        "filename_prefix": "sara/sample-converted"}),
    "draw": Node("KSampler", {
        "model": ("apply", "MODEL"), "positive": ("caption", "CONDITIONING"), "negative": ("caption", "CONDITIONING"),
        "latent_image": ("latent", "LATENT"),
    }, {"steps": 1}),
    "decode": Node("VAEDecode", {"samples": ("draw", "LATENT"), "vae": ("checkpoint", "VAE")}),
    "picture": Node("PreviewImage", {"images": ("decode", "IMAGE")}),
    "overlap": Node("PreviewImage", {"images": ("merge", "picture")}),
    "extracted": Node("PreviewImage", {"images": ("extract", "picture")}),
    "curves": Node("PreviewImage", {"images": ("inspect", "picture")}),
    "report": Node("PreviewAny", {"source": ("inspect", "report")}),
}  # fmt: skip


def put_files(base: Path) -> list[Path]:
    """Put the files that the workflow names into a host's folders, all but the demo's checkpoint; returns them."""
    weight = "model.diffusion_model.input_blocks.0.0.weight"
    model = exact_weights({weight: (8, 4, 3, 3), "model.diffusion_model.time_embed.0.weight": (16, 8)})
    lora = {"up": (16, 2), "down": (2, 8)}
    files = {
        f"checkpoints/{TOY_BASE}": model,
        f"checkpoints/{TOY_TUNED}": {**model, weight: model[weight] * 1.5},
        f"loras/{TOY_LORA}": {f"diffusion_model.time_embed.0.lora_{part}.weight": exact_tensor(part, shape)
                              for part, shape in lora.items()},
    }  # fmt: skip
    for name, tensors in files.items():
        (base / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, base / "models" / name)
    (base / "models/sara").mkdir(exist_ok=True)
    shutil.copyfile(Path(__file__).parent / "deltas/node_adamw_fp32.safetensors", base / "models/sara" / DELTA)
    return [base / "models" / name for name in (*files, f"sara/{DELTA}")]


def ui_workflow(object_info: Mapping[str, Any], tools) -> dict[str, Any]:
    """The workflow as a page of ComfyUI 0.30.0 saves it. tools: the module that reads such files (ui_workflow.py)"""
    ids = {key: number for number, key in enumerate(NODES, 1)}
    links: list[list] = []
    nodes = [_saved(key, ids, object_info, tools, links) for key in NODES]
    for link, origin, output, *_ in links:
        slot = nodes[origin - 1]["outputs"][output]
        slot["links"] = [*(slot["links"] or []), link]
    return {
        "id": "7f3c5a52-6a1e-4b0e-9d3a-0c8f2f6f4a11", "revision": 0, "last_node_id": len(nodes),
        "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [], "config": {},
        "extra": {"frontendVersion": "1.47.12"}, "version": 0.4,
    }  # fmt: skip


def _saved(key: str, ids: Mapping[str, int], object_info, tools, links: list[list]) -> dict[str, Any]:
    node, info, number = NODES[key], object_info[NODES[key].type], ids[key]
    slots, names = tools.slots(info), tools.widget_names(info)
    # The page shows one more input than is connected, of those that grow.
    grown = [name for name in slots if "." in name][: sum("." in name for name in node.links) + 1]
    shown = [name for name in slots if name not in names and ("." not in name or name in grown)]
    inputs = []
    for place, name in enumerate(shown):
        kind = slots[name]
        inputs.append({"name": name, "type": kind, "link": None})
        if name in node.links:
            origin, output = node.links[name]
            output = object_info[NODES[origin].type]["output_name"].index(output)
            links.append([len(links) + 1, ids[origin], output, number, place, kind])
            inputs[-1]["link"] = len(links)
    outputs = [{"name": name, "type": kind, "links": None} for name, kind in zip(info["output_name"], info["output"])]
    return {
        "id": number, "type": node.type, "pos": [400 * (number % 6), 500 * (number // 6)], "size": [320, 400],
        "flags": {}, "order": number - 1, "mode": 0, "inputs": inputs, "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
        "widgets_values": [_value(name, node, tools.inputs(info)) for name in names],
    }  # fmt: skip


def _value(name: str, node: Node, inputs: Mapping[str, tuple]) -> Any:
    if name == "control_after_generate":
        return "fixed"
    if name in node.widgets:
        return node.widgets[name]
    kind, options = inputs[name]
    if "default" in options:
        return options["default"]
    return kind[0] if isinstance(kind, list) else options["options"][0]
