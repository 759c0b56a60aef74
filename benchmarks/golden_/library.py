"""What programs do with the library: training, choosing, merging, extracting, files, diffusers models."""

import copy
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file

import sara_core
from sara_core import SaRA, SparseDelta, diffusers_bridge

from .records import Records, nested
from .toy import batches, loss_of, toy

STEPS, STEPS_AFTER_RESUMING = 20, 10
DENSITY = {"density": 0.2}

# Name → options of SaRA, beside whatever `_Run` reads itself.
TRAININGS = {
    "density": DENSITY,
    "count": {"count": 300},
    "threshold": {"threshold": 0.02},
    "largest": {**DENSITY, "rule": "largest"},
    "random": {**DENSITY, "rule": "random", "seed": 5},
    "gradient": {**DENSITY, "rule": "gradient"},
    "per layer": {**DENSITY, "per_layer": True},
    "patterns": {**DENSITY, "include": "wide, row, bias, norm, !again", "exclude": "last"},
    "dense route": {**DENSITY, "weight_gradient": "dense"},
    "csr route": {**DENSITY, "weight_gradient": "csr"},
    "streamed": {**DENSITY, "stream_to": "cpu"},
    "AdamW with decay": {**DENSITY, "weight_decay": 0.1, "betas": (0.8, 0.95), "amsgrad": True},
    "AdamW unfused": {**DENSITY, "fused": False},
    "Adam": {**DENSITY, "optimizer": torch.optim.Adam},
    "SGD with momentum": {**DENSITY, "optimizer": torch.optim.SGD, "momentum": 0.9, "lr": 0.05},
    "Adafactor": {**DENSITY, "optimizer": torch.optim.Adafactor, "lr": 0.01},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The default rate is the paper's, for models whose small weights matter less than a toy's.
RATE = 1e-2
MERGES = {
    "sum": {}, "mean": {}, "ties": {"keep": 0.4}, "dare": {"keep": 0.6, "seed": 3},
    "ties by count": {"method": "ties", "sign": "count"},
}  # fmt: skip
# Family → class and place of its diffusion model in a pipeline's folder.
MODELS = {
    "sd": (diffusers.UNet2DConditionModel, "unet"), "sdxl": (diffusers.UNet2DConditionModel, "unet"),
    "sd3": (diffusers.SD3Transformer2DModel, "transformer"), "flux": (diffusers.FluxTransformer2DModel, "transformer"),
}  # fmt: skip


def make(records: Records, inputs: Path, host: Path) -> None:
    """Write everything that this part compares."""
    for name, options in TRAININGS.items():
        for dtype in DTYPES if options in (DENSITY, TRAININGS["threshold"]) else ("fp32",):
            _train(records, f"training/{name}, {dtype}", options, DTYPES[dtype])
    _loop(records)
    _choose(records)
    _files(records)
    _merge(records)
    _extract(records, inputs)
    _diffusers(records, inputs)


def _trainer(model, options) -> SaRA:
    if options.get("rule") == "gradient":
        (batch,) = batches(1, seed=7)
        options = {**options, "loss": lambda: loss_of(model, batch)}
    return SaRA(model, **{"lr": RATE, **options})


def _steps(model, trainer: SaRA, coming) -> list[float]:
    losses = []
    for batch in coming:
        trainer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        trainer.step()
        losses.append(loss.item())
    return losses


def _train(records: Records, name: str, options: dict, dtype: torch.dtype) -> None:
    """Twenty steps; ten more; and the same ten by another optimizer over the same base, from the saved state."""
    model, coming = toy(dtype=dtype), list(batches(STEPS + STEPS_AFTER_RESUMING, dtype=dtype))
    trainer = _trainer(model, options)
    selection = trainer.selection
    records.value(f"{name}/selection", {"rule": selection.rule, "theta": selection.theta, "count": selection.count,
                                        "candidates": selection.candidates})  # fmt: skip
    losses = _steps(model, trainer, coming[:STEPS])
    state = copy.deepcopy(trainer.state_dict())
    records.value(f"{name}/at 20", {"losses": losses, "delta": trainer.delta({"note": "twenty"}), "state": state,
                                    "weights": model.state_dict()})  # fmt: skip
    losses = _steps(model, trainer, coming[STEPS:])
    records.value(f"{name}/at 30", {"losses": losses, "delta": trainer.delta(), "weights": model.state_dict()})
    trainer.detach(restore=True)
    records.value(f"{name}/restored", model.state_dict())

    model = toy(dtype=dtype)
    trainer = _trainer(model, options)
    trainer.load_state_dict(state)
    losses = _steps(model, trainer, coming[STEPS:])
    trainer.detach()
    records.value(f"{name}/resumed", {"losses": losses, "delta": trainer.delta(), "weights": model.state_dict()})


def _loop(records: Records) -> None:
    """What a usual training loop does beside steps: accumulation, clipping, a schedule, and the adjustment."""
    model = toy()
    trainer = _trainer(model, DENSITY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer, STEPS)
    norms, adjustment = [], None
    for step, batch in enumerate(batches(2 * STEPS)):
        loss_of(model, batch).backward()
        if step % 2:
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
            trainer.step()
            trainer.zero_grad()
            schedule.step()
        if step == STEPS:
            adjustment = trainer.adjust()
    records.value("training/a whole loop", {"norms": norms, "adjustment": adjustment, "delta": trainer.delta(),
                                            "state": trainer.state_dict(), "weights": model.state_dict()})  # fmt: skip


def _choose(records: Records) -> None:
    weights = {name: weight for name, weight in toy(seed=2).named_parameters() if weight.dim() > 1}
    asked = {
        "threshold": {"threshold": 0.05}, "count": {"count": 77}, "density": {"density": 0.1},
        "largest": {"density": 0.1, "rule": "largest"}, "random": {"count": 50, "rule": "random", "seed": 9},
        "per layer": {"density": 0.05, "per_layer": True},
        "largest per layer": {"density": 0.05, "per_layer": True, "rule": "largest"},
    }  # fmt: skip
    for dtype in DTYPES.values():
        # Few numbers, so that many are equal: of those the first are taken.
        rounded = {name: (weight.detach() * 64).round().div(64).to(dtype) for name, weight in weights.items()}
        for kind, tensors in (("all", weights), ("equal", rounded)):
            for name, options in asked.items():
                records.value(f"selection/{name}, {kind}, {dtype}", sara_core.select(tensors, **options))


def _trained_delta(seed: int) -> SparseDelta:
    model = toy()
    trainer = SaRA(model, density=0.15, rule="random", seed=seed, lr=RATE)
    _steps(model, trainer, batches(4, seed=seed))
    return trainer.delta({"sara.family": "Toy", "modelspec.title": f"Toy {seed}"})


def _files(records: Records) -> None:
    first, second = _trained_delta(1), _trained_delta(2)
    for name, dtype in DTYPES.items():
        path = records.path(f"files/{name}.safetensors")
        first.save(path, dtype)
        records.value(f"files/{name}, loaded", SparseDelta.load(path))
    records.value("files/sum", first + second)
    records.value("files/product", first * -0.3)
    records.value("files/facts", {"nnz": first.nnz, "density": first.density})
    for strength in (1.0, 0.7, -2.0):
        for name, dtype in DTYPES.items():
            model = toy(dtype=dtype)
            weights = model.state_dict()
            handle = first.apply_(weights, strength)
            records.value(f"files/applied {strength}, {name}", weights)
            handle.remove()
            records.value(f"files/removed {strength}, {name}", weights)


def _merge(records: Records) -> None:
    deltas = [_trained_delta(seed) for seed in (1, 2, 3)]
    for name, options in MERGES.items():
        options = {"method": name, **options}
        merged = sara_core.merge(deltas, [0.6, -0.4, 1.5], names=["a", "b", "c"], **options)
        records.value(f"merge/{name}", merged)


def _extract(records: Records, inputs: Path) -> None:
    base, tuned = inputs / "models/sd", inputs / "tuned/0"
    mappings = ({name: tensor for name, tensor in toy(seed=seed).state_dict().items()} for seed in (0, 3))
    base_weights, tuned_weights = mappings
    records.value("extract/mappings", sara_core.extract(base_weights, tuned_weights))
    for options in ({}, {"density": 0.01}, {"count": 1000}):
        delta = sara_core.extract(base, tuned, **options)
        name = " ".join(map(str, *options.items())) if options else "everything"
        records.value(f"extract/{name}", delta)
    delta = sara_core.extract(base, inputs / "tuned/1", support=delta)
    records.value("extract/support", delta)


def _diffusers(records: Records, inputs: Path) -> None:
    """A delta trained on each family's model, under ComfyUI's names, and back on a fresh model."""
    for family, (kind, place) in MODELS.items():
        folder = inputs / "models" / family / place
        batch = nested(load_file(inputs / "batches" / f"{family}.safetensors"))
        model = kind.from_pretrained(folder)
        records.value(f"diffusers/{family}, identity", diffusers_bridge.identity_metadata(model, family))
        trainer = SaRA(model, density=0.01, lr=RATE)
        losses = []
        for _ in range(3):
            loss = model(**batch).sample.square().mean()
            loss.backward()
            trainer.step()
            trainer.zero_grad()
            losses.append(loss.item())
        delta = diffusers_bridge.comfyui_delta(model, trainer.delta())
        path = records.path(f"diffusers/{family}.safetensors")
        delta.save(path)
        fresh = kind.from_pretrained(folder)
        handle = diffusers_bridge.load_delta(fresh, path, 0.8)
        changed = {name: weight.clone() for name, weight in fresh.state_dict().items()}
        handle.remove()
        records.value(f"diffusers/{family}, applied", {"losses": losses, "changed": changed})
        records.value(f"diffusers/{family}, removed", fresh.state_dict())
