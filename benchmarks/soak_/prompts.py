"""What the two people queue: the example workflows with other values, small enough to take a second or two."""

import random
from collections.abc import Mapping
from typing import Any

from devtools.templates import workflows

from .site import PICTURES, SMALL, Site, picked

_COMMON = {"batch_size": 2, "density": 1.0, "learning_rate": 1e-3}
# Each with a seed of its own, by which a snapshot says which one it is of.
RECIPES: dict[int, dict[str, Any]] = {
    101: {"steps": 6},
    102: {"steps": 8, "adjust_at": "0.5"},
    103: {"steps": 6, "include": "bias,attn", "grad_accumulation": 2},
    104: {"steps": 7, "layers": "attention only", "low_rank_weight": 5e-5},
}
SNAPSHOT_EVERY = 2
STRENGTHS = (0.0, 0.5, 1.0, -1.0)


def training(site: Site, seed: int, prefix: str | None, resume: str = "none") -> dict:
    """A recipe's training with a snapshot after every second step; saved under a prefix, or for None left unsaved and
    looked at."""
    # What ComfyUI has the result of it does not do again: the threshold differs, which counts for nothing here.
    values = {
        **_COMMON,
        **RECIPES[seed],
        "seed": seed,
        "resume": resume,
        "threshold": 0.001 + site.next_number() * 1e-7,
    }
    prompt = workflows.train_style(site.info, site.checkpoint.name, PICTURES, values, prefix or "none")
    required = site.info["SaRATrainOptions"]["input"]["required"]
    options = {name: specification[1]["default"] for name, specification in required.items()}
    prompt["options"] = _node("SaRATrainOptions", {**options, "snapshot_every": SNAPSHOT_EVERY, "snapshots_kept": 2})
    trained = node_id(prompt, "SaRATrain")
    prompt[trained]["inputs"]["options"] = ["options", 0]
    if prefix is None:
        del prompt[node_id(prompt, "SaRASave")]
        prompt["inspect"] = _node("SaRAInspect", {"delta": [trained, 0], "threshold": 0.002})
        prompt["text"] = _node("PreviewAny", {"source": ["inspect", 0]})
    return prompt


def training_and_picture(site: Site, seed: int, strength: float) -> dict:
    """A training whose delta is drawn with, and not saved."""
    prompt = training(site, seed, None)
    train, model = node_id(prompt, "SaRATrain"), node_id(prompt, "CheckpointLoaderSimple")
    prompt["apply"] = _node("SaRAApply", {"model": [model, 0], "delta": [train, 0], "strength": strength})
    prompt.update(_drawing(["apply", 0], [model, 1], [model, 2], seed))
    return prompt


def picture(site: Site, delta: str, choose: random.Random, stock: bool) -> dict:
    """A picture with a saved delta, by this pack's loader or by the stock Load LoRA."""
    model = _node("CheckpointLoaderSimple", {"ckpt_name": site.checkpoint.name})
    strength, seed = choose.choice(STRENGTHS), choose.randrange(1000)
    if stock:
        names = {"lora_name": delta, "strength_model": strength}
        loader = _node("LoraLoaderModelOnly", {"model": ["model", 0], **names})
    else:
        loader = _node("SaRALoader", {"model": ["model", 0], "sara_name": delta, "strength": strength})
    return {"model": model, "load": loader, **_drawing(["load", 0], ["model", 1], ["model", 2], seed)}


def merging(site: Site, choose: random.Random) -> dict:
    """Two deltas merged, drawn with and saved."""
    names = picked(choose, site.deltas()), picked(choose, site.deltas())
    weights = choose.choice(["0.5, 0.5", "1, -0.3", "0.6"])
    prompt = workflows.merge_styles(site.info, site.checkpoint.name, names, weights, "a three", choose.randrange(1000))
    merge = node_id(prompt, "SaRAMerge")
    prompt[merge]["inputs"].update(method=choose.choice(["sum", "mean", "ties", "dare"]), seed=site.next_number())
    prompt["save"] = _saving([merge, 0], "sara/merged", choose)
    return _only_shown(prompt)


def baking(site: Site, choose: random.Random) -> dict:
    prompt = workflows.bake_delta(site.info, SMALL, picked(choose, site.deltas()), "checkpoints/baked")
    strength = choose.choice(STRENGTHS[1:]) + site.next_number() * 1e-9
    prompt[node_id(prompt, "SaRABake")]["inputs"]["strength"] = strength
    return prompt


def extracting(site: Site, choose: random.Random) -> dict:
    kept = {"select_by": choose.choice(["everything", "density"]), "density": 0.5 + site.next_number() * 1e-7}
    return workflows.extract_delta(site.info, SMALL, picked(choose, site.baked()), kept, "sara/extracted")


def converting(site: Site, choose: random.Random) -> dict:
    """A delta into another format."""
    to = choose.choice(["sara", "diff", "lora", "shira"])
    prefix = "sara/converted" if to == "sara" else f"loras/{to}"
    return conversion(picked(choose, site.deltas()), to, f"{prefix}_{site.next_number()}")


def conversion(file_name: str, to: str, prefix: str, density: float = 0.0) -> dict:
    """density: per cent that are kept, 0 for all"""
    names = {"file_name": file_name, "base_name": SMALL, "filename_prefix": prefix}
    return {"convert": _node("SaRAConvert", {**names, "density": density, "to": to, "rank": 2})}


def inspecting(site: Site, choose: random.Random) -> dict:
    """A delta and the model described together."""
    delta = {"sara_name": picked(choose, site.deltas()), "strength": 1.0}
    return {
        "model": _node("CheckpointLoaderSimple", {"ckpt_name": site.checkpoint.name}),
        "delta": _node("SaRALoader", delta),
        "inspect": _node("SaRAInspect", {"delta": ["delta", 1], "model": ["model", 0], "threshold": choose.random()}),
        "text": _node("PreviewAny", {"source": ["inspect", 0]}),
    }


def loading(delta: str) -> dict:
    """A delta read and described, without a model."""
    return {
        "delta": _node("SaRALoader", {"sara_name": delta, "strength": 1.0}),
        "inspect": _node("SaRAInspect", {"delta": ["delta", 1], "threshold": 0.002}),
        "text": _node("PreviewAny", {"source": ["inspect", 0]}),
    }


def odd_choices(site: Site, names: Mapping[str, str]) -> dict[str, dict]:
    """Prompts that take what is odd: label → prompt. names: what lies in "sara", "snapshots" and "checkpoints"."""
    seed = min(RECIPES)
    bake = workflows.bake_delta(site.info, names["checkpoints"], site.deltas()[0], "checkpoints/baked")
    return {
        "load": loading(names["sara"]),
        "resume": training(site, seed, "sara/trained", names["snapshots"]),
        "convert": conversion(names["sara"], "sara", "sara/converted"),
        "bake": bake,
        "extract": workflows.extract_delta(site.info, SMALL, names["checkpoints"], {}, "sara/extracted"),
    }


def node_id(prompt: dict, class_type: str) -> str:
    (found,) = (name for name, node in prompt.items() if node["class_type"] == class_type)
    return found


def _only_shown(prompt: dict) -> dict:
    """Without the files of core's Save Image, which is not what is watched here."""
    for node in prompt.values():
        if node["class_type"] == "SaveImage":
            node.update(class_type="PreviewImage", inputs={"images": node["inputs"]["images"]})
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    return prompt


def _drawing(model: list, clip: list, vae: list, seed: int) -> dict:
    sampling = {"seed": seed, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    linked = {"model": model, "positive": ["words", 0], "negative": ["words", 0], "latent_image": ["noise", 0]}
    return {
        "words": _node("CLIPTextEncode", {"clip": clip, "text": "a three"}),
        "noise": _node("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": _node("KSampler", {**sampling, **linked}),
        "decoder": _node("VAEDecode", {"samples": ["sampler", 0], "vae": vae}),
        "picture": _node("PreviewImage", {"images": ["decoder", 0]}),
    }


def _saving(delta: list, prefix: str, choose: random.Random) -> dict:
    values = choose.choice(["fp32", "bf16"])
    return _node("SaRASave", {"delta": delta, "filename_prefix": prefix, "values": values, "title": "soak"})


def _node(class_type: str, inputs: dict) -> dict:
    return {"class_type": class_type, "inputs": inputs}
