"""What gpu_host.py does with a ComfyUI, step by step. Each step says what it saw, and which of it must be so.

A step takes the `Work` with what earlier ones have left, and raises what goes wrong, or `NotRun` if what it needs is
not there. Checks are sentences with whether they hold; figures are for the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import torch

from benchmarks.apply_.files import PREFIX, lora_name
from benchmarks.gpu_host_ import files, prompts
from benchmarks.gpu_host_.files import CHECKPOINT, ELEMENTS, delta_name
from benchmarks.gpu_host_.site import Site, digest
from demo.checkpoint import UNET_PREFIX
from devtools.comfyui.client import NodeProgress, PromptInterrupted
from sara_core.delta import SparseDelta

TRAINING_STEPS, PICTURES_EVERY = 20, 10
STRENGTHS = (1.0, 0.5)
# More than are done before Cancel comes; the host tells of progress by the half per cent.
ENDLESS, CANCEL_AT = 500, 5


class NotRun(Exception):
    """A step cannot be tried; the message says why."""


@dataclass
class Settings:
    """size: of pictures; sampling: steps of a picture; seconds: what a prompt may take
    patcher: the host's class that the model must be loaded by, None for whichever it is
    """

    layout: str
    size: int
    sampling: int
    seconds: float
    patcher: str | None = None


@dataclass
class Work:
    """What the steps leave for each other.

    before: the picture without a delta; dtype: of the loaded weights; trained: name of the delta that was trained
    """

    site: Site
    settings: Settings
    before: np.ndarray | None = None
    dtype: str | None = None
    trained: str | None = None
    with_delta: dict[float, np.ndarray] = field(default_factory=dict)

    def run(self, *parts: prompts.Prompt, on_progress=None) -> dict:
        prompt = prompts.base(CHECKPOINT)
        for part in parts:
            prompt.update(part)
        return self.site.run(prompt, self.settings.seconds, on_progress)

    def picture(self, model: list = prompts.MODEL, *parts: prompts.Prompt) -> np.ndarray:
        drawn = prompts.drawn(model, self.settings.size, self.settings.sampling)
        return self.site.pixels(self.run(*parts, drawn))

    def probe(self, model: list = prompts.MODEL, *parts: prompts.Prompt, expected: Path | None = None) -> dict:
        asked = prompts.probed(model, "" if expected is None else str(expected))
        return self.run(*parts, asked)["probe"]["probe"][0]

    def expected(self, delta: str | None = None, strength: float = 1.0) -> Path:
        """What the library makes of the checkpoint on the CPU, in the dtype that the host has loaded it in."""
        if self.dtype is None:
            raise NotRun("nobody knows the dtype of the loaded model: its first step failed")
        path = self.site.files / f"expected-{self.dtype}-{delta}-{strength:g}.safetensors"
        if not path.exists():
            file = None if delta is None else self.site.files / "sara" / delta
            files.write_expected(self.site.files / "checkpoints" / CHECKPOINT, path, self.dtype, file, strength)
        return path

    def as_before(self) -> dict[str, bool]:
        """That the model is what it was, in pictures and weights."""
        is_first = self.before is not None and np.array_equal(self.picture(), self.before)
        checks = {"the picture without a delta is the first one": bool(is_first)}
        found = self.probe(expected=self.expected())
        return {**checks, **same_weights(found, "the weights are those of the file")}


def same_weights(found: dict, sentence: str) -> dict[str, bool]:
    """A check on what the probe has compared."""
    same = found["different"] == 0 and not found["missing"] and not found["of_other_kind"] and found["elements"] > 0
    return {sentence: same}


def times(found: dict) -> dict[str, float]:
    return {"seconds": round(found["loading"] + found["first_use"], 4), "loading": round(found["loading"], 4),
            "first_use": round(found["first_use"], 4), "second_use": round(found["second_use"], 4)}  # fmt: skip


def first_picture(work: Work) -> dict:
    """The model by itself: what later ones are compared with."""
    work.before = work.picture()
    found = work.probe()
    work.dtype = found["dtype"].removeprefix("torch.")
    compared = work.probe(expected=work.expected())
    return {
        "checks": {
            "the picture shows something": float(work.before.std()) > 1.0,
            "the same picture again": bool(np.array_equal(work.picture(), work.before)),
            **same_weights(compared, "the weights are those of the file"),
            "the host treats its memory as it was asked to": work.settings.patcher in (None, found["patcher"]),
        },
        "figures": {"patcher": found["patcher"], "dtype": found["dtype"], "computes_in": found["computes_in"],
                    "picture": digest(work.before), **times(found), **compared_figures(compared)},
    }  # fmt: skip


def strengths(work: Work) -> dict:
    """SaRA Loader with a delta of all layers, at one strength after the other, and without it again."""
    name, checks, figures = delta_name(ELEMENTS[work.settings.layout][0], "A"), {}, {}
    for strength in STRENGTHS:
        loader = {"delta": prompts.delta(name, strength)}
        found = work.probe(["delta", 0], loader, expected=work.expected(name, strength))
        figures[f"at {strength:g}"] = {**times(found), **compared_figures(found)}
        checks |= same_weights(found, f"at {strength:g}: the weights are what the library makes of the file on the CPU")
        work.with_delta[strength] = work.picture(["delta", 0], loader)
        if work.before is not None:
            differs = not np.array_equal(work.with_delta[strength], work.before)
            checks[f"at {strength:g}: the picture is another one"] = differs
    checks["the pictures of the two strengths differ"] = not np.array_equal(*work.with_delta.values())
    if work.before is not None:
        at_zero = work.picture(["delta", 0], {"delta": prompts.delta(name, 0.0)})
        checks["at 0: the first picture"] = bool(np.array_equal(at_zero, work.before))
    return {"checks": {**checks, **work.as_before()}, "figures": figures}


def applying(work: Work) -> dict:
    """Seconds until the model with it is loaded and each of its weights was used once: deltas beside a LoRA r16."""
    few, many = ELEMENTS[work.settings.layout]
    figures, checks = {}, {}
    kinds = {
        "LoRA r16": lambda version, strength: prompts.lora(lora_name(version), strength),
        f"delta of {few:,}": lambda version, strength: prompts.delta(delta_name(few, version), strength),
        f"delta of {many:,}": lambda version, strength: prompts.delta(delta_name(many, version), strength),
    }
    for kind, loader in kinds.items():
        for what, version, strength in (
            ("put on", "A", 1.0), ("other strength", "A", 0.5), ("other file", "B", 0.5), ("back", "A", 0.5)
        ):
            found = work.probe(["adapter", 0], {"adapter": loader(version, strength)})
            figures[f"{kind}: {what}"] = times(found)
        figures[f"{kind}: taken off"] = times(work.probe())
    found = work.probe(["adapter", 0], {"adapter": prompts.delta(delta_name(many, "A"), 1.0)},
                       expected=work.expected(delta_name(many, "A"), 1.0))  # fmt: skip
    checks |= same_weights(found, "the large delta: the weights are what the library makes of the file on the CPU")
    figures["the large delta"] = compared_figures(found)
    return {"checks": {**checks, **work.as_before()}, "figures": figures}


def beside_a_lora(work: Work) -> dict:
    """A LoRA behind SaRA Loader, and before it."""
    few = delta_name(ELEMENTS[work.settings.layout][0], "A")
    behind = {"delta": prompts.delta(few, 1.0), "lora": prompts.lora(lora_name("A"), 1.0, ["delta", 0])}
    before = {"lora": prompts.lora(lora_name("A"), 1.0), "delta": prompts.delta(few, 1.0, ["lora", 0])}
    alone = work.picture(["lora", 0], {"lora": prompts.lora(lora_name("A"), 1.0)})
    pictures = [work.picture(["lora", 0], behind), work.picture(["delta", 0], before)]
    checks = {"both change the LoRA's picture": not any(np.array_equal(picture, alone) for picture in pictures)}
    return {"checks": {**checks, **work.as_before()}}


def training(work: Work) -> dict:
    """SaRA Train, with pictures in between, saved, put on by SaRA Apply and drawn in the same prompt."""
    parts = prompts.training("pictures", work.settings.size, {**widgets(TRAINING_STEPS), "batch_size": 2})
    parts["train"]["inputs"]["samples"] = ["samples", 0]
    parts["samples"] = prompts.node(
        "SaRATrainSamples", positive=["positive", 0], vae=["checkpoint", 2], every=PICTURES_EVERY,
        steps=work.settings.sampling,
    )  # fmt: skip
    parts["apply"] = prompts.node("SaRAApply", model=prompts.MODEL, delta=["train", 0], strength=1.0)
    work.site.memory()
    outputs = work.run(parts, prompts.drawn(["apply", 0], work.settings.size, work.settings.sampling))
    memory = work.site.memory()
    picture, run = work.site.pixels(outputs), outputs["train"]["sara_run"][0]
    saved = work.site.server.output / outputs["save"]["text"][0]
    work.trained = saved.name
    checks = {**sound(SparseDelta.load(saved), run), **work.as_before()}
    loaded = work.picture(["delta", 0], {"delta": prompts.delta(work.trained, 1.0)})
    checks["SaRA Loader draws with the saved file what SaRA Apply drew"] = bool(np.array_equal(loaded, picture))
    if work.before is not None:
        checks["the delta changes the picture"] = not np.array_equal(picture, work.before)
    drawn = (run["samples"] or {}).get("columns", [])
    checks["it drew pictures in between"] = len(drawn) > TRAINING_STEPS // PICTURES_EVERY
    return {"checks": checks, "figures": run_figures(run), "memory": memory}


def other_trainings(work: Work) -> dict:
    """Without checkpointing, and chosen by the gradient; each short."""
    checks, figures = {}, {}
    for name, changes, options in (
        ("without checkpointing", {"gradient_checkpointing": False}, {}),
        ("by the gradient", {}, {"selection_rule": "gradient"}),
    ):
        parts = prompts.training("pictures", work.settings.size, {**widgets(TRAINING_STEPS), **changes}, options)
        outputs = work.run(parts)
        run = outputs["train"]["sara_run"][0]
        delta = SparseDelta.load(work.site.server.output / outputs["save"]["text"][0])
        checks |= {f"{name}: {sentence}": holds for sentence, holds in sound(delta, run).items()}
        figures[name] = run_figures(run)
    return {"checks": {**checks, **work.as_before()}, "figures": figures}


def text_encoders(work: Work) -> dict:
    """The text encoder trained too, and a picture with both parts of the delta."""
    parts = prompts.training(
        "pictures", work.settings.size, widgets(TRAINING_STEPS // 2), {"train": "diffusion model and text encoders"}
    )
    parts["train"]["inputs"] |= {"clip": ["checkpoint", 1], "captions": ["dataset", 1]}
    outputs = work.run(parts)
    run = outputs["train"]["sara_run"][0]
    delta = SparseDelta.load(work.site.server.output / outputs["save"]["text"][0])
    return {"checks": {**sound(delta, run), **work.as_before()}, "figures": run_figures(run)}


def cancelled(work: Work) -> dict:
    """Cancel in the middle of a training: what was trained is kept, and the model is what it was."""
    def files_there():
        return {path for path in (work.site.server.output / "sara").rglob("*.safetensors")}

    there, seen = files_there(), []

    def cancel(progress: NodeProgress) -> None:
        if progress.maximum == ENDLESS and progress.value >= CANCEL_AT and not seen:
            seen.append(progress.value)
            work.site.server.client.interrupt()

    try:
        work.run(prompts.training("pictures", work.settings.size, widgets(ENDLESS)), on_progress=cancel)
        stopped = False
    except PromptInterrupted:
        stopped = True
    kept = files_there() - there
    checks = {"Cancel stops it": stopped and bool(seen), "the delta so far is kept": bool(kept)}
    return {"checks": {**checks, **work.as_before()}, "figures": {"at step": seen, "kept": len(kept)}}


def baked(work: Work) -> dict:
    """SaRA Bake: the file has what the library makes of the checkpoint, and draws what the delta draws."""
    name = delta_name(ELEMENTS[work.settings.layout][0], "A")
    parts = {
        "delta": prompts.node("SaRALoader", sara_name=name, strength=1.0),
        "bake": prompts.node("SaRABake", ckpt_name=CHECKPOINT, delta=["delta", 1], strength=1.0),
    }
    path = work.site.server.output / work.run(parts)["bake"]["text"][0]
    expected = work.site.files / f"baked-{name}"
    delta = work.site.files / "sara" / name
    files.write_expected(work.site.files / "checkpoints" / CHECKPOINT, expected, "float16", delta)
    checks = {"the file is what the library makes of the checkpoint on the CPU": same_files(path, expected)}
    if work.dtype == "float16" and 1.0 in work.with_delta:
        model = {"baked": prompts.node("CheckpointLoaderSimple", ckpt_name=path.name)}
        picture = work.picture(["baked", 0], model)
        checks["it draws what the delta draws"] = bool(np.array_equal(picture, work.with_delta[1.0]))
    return {"checks": {**checks, **work.as_before()}}


def freed(work: Work) -> dict:
    """All models unloaded, and the model loaded again."""
    work.run({"delta": prompts.delta(delta_name(ELEMENTS[work.settings.layout][0], "A"), 1.0)},
             prompts.probed(["delta", 0]))  # fmt: skip
    work.site.server.client.free()
    return {"checks": work.as_before(), "memory": work.site.memory()}


def widgets(steps: int) -> dict:
    return {"steps": steps, "density": 1.0, "learning_rate": 1e-3, "seed": 3}


def sound(delta: SparseDelta, run: dict) -> dict[str, bool]:
    """What must be so of every training."""
    losses = [loss for _, loss in run["losses"]]
    changed = sum(int(torch.count_nonzero(entry.values)) for entry in delta.entries.values())
    return {
        "it finished": run["phase"] == "finished",
        "every loss is a number": len(losses) > 0 and bool(np.isfinite(np.array(losses, dtype=float)).all()),
        "nearly all of the delta's elements have changed": changed > 0.5 * delta.nnz,
        "its values are numbers": all(bool(torch.isfinite(entry.values).all()) for entry in delta.entries.values()),
    }


def run_figures(run: dict) -> dict:
    losses = [loss for _, loss in run["losses"]]
    told = {"seconds_per_step": run["seconds_per_step"], "losses": losses[:3] + losses[-3:], "steps": run["step"]}
    memory = {name: value >> 20 for name, value in (run["memory"] or {}).items() if isinstance(value, int)}
    return {**told, "memory": memory, "estimate": run["estimate"], "warnings": run["warnings"]}


def same_files(path: Path, expected: Path) -> bool:
    """Whether a checkpoint has the weights that a file has by the host's keys, to the bit."""
    with safetensors.safe_open(path, framework="pt") as file, safetensors.safe_open(expected, framework="pt") as ours:
        return all(
            torch.equal(file.get_tensor(UNET_PREFIX + key.removeprefix(PREFIX)).view(torch.int16),
                        ours.get_tensor(key).view(torch.int16)) for key in ours.keys()
        )  # fmt: skip


def compared_figures(found: dict) -> dict:
    return {name: found[name] for name in ("different", "worst", "missing", "of_other_kind") if found.get(name)}


# In this order; the most telling first.
STEPS: dict[str, Callable[[Work], dict]] = {
    "first picture": first_picture, "strengths": strengths, "training": training, "Cancel": cancelled,
    "applying": applying, "LoRA behind and before": beside_a_lora, "bake": baked, "memory given back": freed,
    "other trainings": other_trainings, "text encoders": text_encoders,
}  # fmt: skip
