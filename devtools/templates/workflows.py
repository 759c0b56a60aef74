"""The example workflows as a person uses them: opened, their widgets set, some nodes muted, queued."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from demo import settings

from ..comfyui.install import ROOT
from .graphs import LEARN_A_SUBJECT, TRAIN_A_STYLE
from .ui_workflow import MUTED, ObjectInfo, fill, to_prompt

Prompt = dict[str, dict[str, Any]]

SAMPLING = {
    "steps": settings.SAMPLE_STEPS, "cfg": settings.GUIDANCE, "sampler_name": settings.SAMPLER,
    "scheduler": settings.SCHEDULER,
}  # fmt: skip
SQUARE = {"width": settings.SIZE, "height": settings.SIZE}
NO_DELTA = " (no delta)"


def train_style(info: ObjectInfo, checkpoint: str, folder: str, training: Mapping[str, Any], prefix: str) -> Prompt:
    """Train on the pictures and captions of an input folder, save the delta, plot the loss.

    training: SaRATrain's widgets by name, as far as they are not left as in the workflow.
    """
    return _prompt(
        TRAIN_A_STYLE,
        info,
        {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
            "SaRADataset": {"folders": folder},
            "Trigger word": {"value": ""},  # it is in the captions, but for those of plain pictures
            "Picture size": {"value": settings.SIZE},
            "SaRATrain": training,
            "SaRASave": {"filename_prefix": prefix},
        },
        ["SaRAApply"],
    )


def learn_subject(
    info: ObjectInfo, checkpoint: str, folder: str, others: int, training: Mapping[str, Any], prefix: str
) -> Prompt:
    """As `train_style`, beside so many class images, which the model draws."""
    return _prompt(
        LEARN_A_SUBJECT,
        info,
        {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
            "SaRADataset": {"folders": folder},
            "Trigger word": {"value": settings.STYLE},
            "Picture size": {"value": settings.SIZE},
            "Its kind": {"text": "a handwritten digit"},
            "How many others": {"batch_size": others},
            "Draw others of its kind": SAMPLING,
            "SaRATrain": training,
            "SaRASave": {"filename_prefix": prefix},
        },
        ["SaRAApply"],
    )


def use_delta(
    info: ObjectInfo, checkpoint: str, delta: str, caption: str, seed: int, *, with_delta: bool = True
) -> Prompt:
    """Draw a caption by one of the workflow's two rows: with the delta (SaveImage) or without it (PreviewImage)."""
    muted = ["KSampler" + NO_DELTA] if with_delta else ["KSampler"]
    prompt = _prompt(
        "Use a delta",
        info,
        {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
            "SaRALoader": {"sara_name": delta},
            "Prompt": {"string_b": caption, "delimiter": ""},
            "Negative prompt": {"text": ""},
            "Picture size": SQUARE,
            "Seed": {"value": seed},
            "KSampler": SAMPLING,
            "KSampler" + NO_DELTA: SAMPLING,
            "SaveImage": {"filename_prefix": "sara-demo/picture"},
        },
        muted,
    )
    if not with_delta:  # without its trigger word too, so that there need not be a delta
        (sentence,) = (node for node in prompt.values() if node["class_type"] == "StringConcatenate")
        sentence["inputs"]["string_a"] = ""
    return prompt


def merge_styles(
    info: ObjectInfo, checkpoint: str, deltas: tuple[str, str], weights: str, caption: str, seed: int
) -> Prompt:
    """Draw a caption with two deltas merged."""
    return _prompt(
        "Merge two styles",
        info,
        {
            "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
            "First style": {"sara_name": deltas[0]},
            "Second style": {"sara_name": deltas[1]},
            "SaRAMerge": {"weights": weights},
            "Prompt": {"text": caption},
            "Negative prompt": {"text": ""},
            "Picture size": SQUARE,
            "KSampler": {**SAMPLING, "seed": seed},
        },
    )


def extract_delta(info: ObjectInfo, base: str, tuned: str, selection: Mapping[str, Any], prefix: str) -> Prompt:
    """Extract a delta of a tuned checkpoint, look at it and save it. selection: SaRAExtract's widgets for how much."""
    extract = {"base_name": base, "tuned_name": tuned, **selection}
    return _prompt("Inspect and extract", info, {"SaRAExtract": extract, "SaRASave": {"filename_prefix": prefix}})


def bake_delta(info: ObjectInfo, checkpoint: str, delta: str, prefix: str) -> Prompt:
    """Bake a delta into a checkpoint."""
    bake = {"ckpt_name": checkpoint, "filename_prefix": prefix}
    return _prompt("Bake a delta", info, {"SaRALoader": {"sara_name": delta}, "SaRABake": bake})


def output_of(prompt: Prompt, outputs: Mapping[str, dict], class_type: str) -> dict:
    """The outputs of the prompt's one node of a type."""
    (node_id,) = (node_id for node_id, node in prompt.items() if node["class_type"] == class_type)
    return outputs[node_id]


def _prompt(
    name: str, info: ObjectInfo, values: Mapping[str, Mapping[str, Any]], muted: Iterable[str] = ()
) -> Prompt:
    """An example workflow with widgets set; with the nodes of the titles ``muted``, all that follow are muted."""
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    fill(workflow, info, values)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    to_mute = [node["id"] for node in workflow["nodes"] if node.get("title", node["type"]) in muted]
    while to_mute:
        node_id = to_mute.pop()
        nodes[node_id]["mode"] = MUTED
        to_mute += [link[3] for link in workflow["links"] if link[1] == node_id]
    return to_prompt(workflow, info)
