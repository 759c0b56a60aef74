"""What SaRA Train says before Run: POST /sara/check. It is asked with names of the menus, and of folders inside the
input folder, never with paths."""

import os
from collections.abc import Mapping
from typing import Any

import comfy.model_management

from ....sara_core.data.buckets import STEP
from ....sara_core.data.survey import survey
from ....sara_core.errors import SaRAError, TrainingError
from ....sara_core.files.disk import free_bytes
from ....sara_core.foreign_text import NAME, plain
from ....sara_core.memory.expected import latent_area
from ....sara_core.models.family import outline_of_file
from ....sara_core.names.outline import Outline
from ....sara_core.names.patterns import ALL_LAYERS
from ....sara_core.numbers import checked
from ....sara_core.training.foretold import Machine, Pictures, Plan, foretold
from ....sara_core.training.presets import GOALS, preset
from ....sara_core.training.settings import SETTINGS
from .. import datasets, folders
from .past_runs import Kind, expected_of
from .routes import on_post
from .run_state import sentence

AMOUNTS = ("density", "count", "threshold")
_MOST_RESOLUTION = 4096
_MOST_TEXT = 20_000  # letters of a widget

_outlines: dict[tuple, Outline | None] = {}


def register_check() -> None:
    """Give the page its address."""
    on_post("check", _check)


def _check(asked: Mapping[str, Any]) -> dict:
    """Of a training that is asked for: what it will take, and what is odd; with a `goal`, its preset, too.

    asked: model: a name in the menus; settings: SaRA Train's widgets by name; dataset: {"folders", "trigger",
    "caption", "resolution", "buckets"} as on SaRA Dataset. What the page could not find out is left out of it.
    Raises TrainingError for what no page of ours sends.
    """
    model = _model(asked.get("model"))
    pictures = _pictures(_mapping(asked, "dataset"))
    plan = _plan(_mapping(asked, "settings"))
    machine = _machine(plan, model, pictures)
    known = foretold(plan, model, pictures, machine)
    memory = known.memory and {
        "size": known.memory.size, "is_least": known.memory.is_least, "total": machine.memory,
    }  # fmt: skip
    return {
        "family": model and model.family and plain(model.family, NAME),
        "pictures": pictures.count, "without_caption": pictures.without_caption, "resolution": pictures.resolution,
        "trained": known.trained, "delta": known.delta, "disk": known.disk, "memory": memory, "steps": plan.steps,
        "seconds": known.seconds, "doubts": [sentence(doubt) for doubt in known.doubts],
        "preset": _preset(asked.get("goal"), model, pictures),
    }  # fmt: skip


def _mapping(asked: Mapping, name: str) -> Mapping:
    found = asked.get(name)
    return found if isinstance(found, Mapping) else {}


def _model(name: Any) -> Outline | None:
    if not isinstance(name, str):
        return None
    try:
        path = folders.model_path(name)
    except SaRAError:  # chosen on another machine; the prompt says so when it runs
        return None
    key = path, folders.fingerprint(path)
    if key not in _outlines:
        _outlines[key] = outline_of_file(path)
    return _outlines[key]


def _plan(widgets: Mapping) -> Plan:
    amount = widgets.get("select_by")
    amount = amount if amount in AMOUNTS else "density"
    value = _number(widgets, amount, 1.0, 0, 2**31)
    value = value / 100 if amount == "density" else value
    patterns = [widgets.get(name, "") or "" for name in ("include", "exclude")]
    return Plan(
        amount, value, _setting(widgets, "steps"), _setting(widgets, "batch_size"),
        _setting(widgets, "grad_accumulation"), widgets.get("gradient_checkpointing") is not False,
        _setting(widgets, "snapshot_every"), _setting(widgets, "snapshots_kept"),
        trains_all_layers=not any(patterns) and widgets.get("layers", ALL_LAYERS) == ALL_LAYERS,
    )  # fmt: skip


def _setting(widgets: Mapping, name: str) -> int:
    known = SETTINGS[name]
    return int(_number(widgets, name, known.default, known.least, known.most))


def _number(widgets: Mapping, name: str, default: float, least: float, most: float) -> float:
    return checked(widgets.get(name, default), name, least, most, error=TrainingError)


def _pictures(asked: Mapping) -> Pictures:
    resolution = None
    if "resolution" in asked:
        resolution = int(_number(asked, "resolution", 512, 1, 1 << 16))
    text = asked.get("folders")
    names = [line.strip() for line in text.splitlines()] if isinstance(text, str) and len(text) <= _MOST_TEXT else []
    if not any(names) or any(map(os.path.isabs, names)):
        return Pictures(resolution=resolution)
    try:
        inside = [datasets.open_folder(share.folder) for share in datasets.shares(text)]
    except SaRAError:  # the gallery says it
        return Pictures(resolution=resolution)
    side = min(_MOST_RESOLUTION, max(STEP, (resolution or 512) // STEP * STEP))
    seen = [
        picture
        for folder in inside
        for picture in survey(folder, side, asked.get("buckets") is not False, datasets.input_folder()).pictures
    ]
    has_words = any(str(asked.get(name, "") or "").strip() for name in ("trigger", "caption"))
    without = 0 if has_words else sum(not (picture.caption or "").strip() for picture in seen)
    tiny = sum(picture.cut is not None and picture.cut.is_blurred for picture in seen)
    return Pictures(len(seen), without, tiny if resolution else None, resolution)


def _machine(plan: Plan, model: Outline | None, pictures: Pictures) -> Machine:
    device = comfy.model_management.get_torch_device()
    memory = int(comfy.model_management.get_total_memory(device))
    free = free_bytes(folders.snapshot_folder() / "x")
    if model is None:
        return Machine(memory=memory, free=free)
    size = comfy.model_management.unet_dtype(device=device, model_params=model.elements).itemsize
    if pictures.resolution is None:
        return Machine(size, memory, free)
    area = latent_area(model.family, pictures.resolution**2)
    shown = plan.batch_size if pictures.count is None else min(plan.batch_size, max(1, pictures.count))
    kind = Kind(
        model.family, model.trainable, str(device), area, shown, plan.grad_accumulation, plan.gradient_checkpointing
    )  # fmt: skip
    return Machine(size, memory, free, *expected_of(kind))


def _preset(goal: Any, model: Outline | None, pictures: Pictures) -> dict | None:
    """By SaRA Train's widgets: value, density in per cent, and why."""
    if goal not in GOALS:
        return None
    chosen = preset(goal, model, pictures.count or None)
    in_per_cent = {"density": 100}
    return {
        name: {
            "value": round(choice.value * in_per_cent[name], 6) if name in in_per_cent else choice.value,
            "why": sentence(choice.why),
        }
        for name, choice in chosen.items()
    }  # fmt: skip
