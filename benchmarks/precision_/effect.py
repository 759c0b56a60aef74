"""What arrives of a change, in every precision, family and loader."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, layer_outputs, quantised_layers, share_and_noise

# Of the changed elements: about a tenth of what these weights are, as after some hundred steps.
SCALE = 0.2
RANK = 4
WAYS = ("our delta in SaRA Loader", "our delta in Load LoRA", f"rank-{RANK} LoRA in Load LoRA")


def measure(host, folder: Path, device: str) -> list[dict]:
    """A record per precision and family: way → [share, noise]."""
    return [
        {"precision": kind, "family": family, **_effects(host, folder, kind, family)}
        for family in quantised_models.LAYOUTS
        for kind in quantised_models.KINDS
    ]


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one a precision, the range over the families in a cell."""
    rows = []
    for kind in dict.fromkeys(record["precision"] for record in records):
        of_kind = [record for record in records if record["precision"] == kind]
        rows.append([kind, *(_cell([record[way] for record in of_kind]) for way in WAYS)])
    return ["MODEL in", *WAYS], rows


def _cell(found: list[list[float]]) -> str:
    return " / ".join(_range([pair[part] for pair in found]) for part in (0, 1))


def _range(figures: list[float]) -> str:
    low, high = (f"{figure:.3f}" for figure in (min(figures), max(figures)))
    return low if low == high else f"{low}-{high}"


def draw(figure, records: list[dict]) -> None:
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(record["precision"] for record in records))
    for way in WAYS:
        noise = [max(record[way][1] for record in records if record["precision"] == kind) for kind in kinds]
        axes.semilogx([max(value, 1e-8) for value in noise], kinds, "o", label=way)
    axes.set(xlabel="noise, as a share of the effect")
    axes.legend()


def _effects(host, folder: Path, kind: str, family: str) -> dict[str, list[float]]:
    names = quantised_layers(family)
    weights = {f"{name}.weight" for name in names}
    pack = host.pack_module("sara_core.delta")
    delta = delta_of(pack, family, SCALE, lambda name, _: f"diffusion_model.{name}" in weights)
    changes = {name: dense(delta.entries[f"{name}.weight"]) for name in names}
    factors = {name: _factors(change) for name, change in changes.items()}
    delta_file, lora_file = f"{family}.safetensors", f"{family}-lora.safetensors"
    delta.save(host.base / "models" / "sara" / delta_file)
    _save_lora(host.base / "models" / "loras" / lora_file, factors)
    low_rank = {name: up @ down for name, (up, down) in factors.items()}

    def ours(model):
        return host.execute("SaRALoader", model=model, sara_name=delta_file, strength=1.0).outputs[0]

    def stock(name: str) -> Callable:
        return lambda model: host.execute(
            "LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0
        ).outputs[0]

    model = quantised_models.model(kind, family, folder)
    before = layer_outputs(model, names)
    loaders = (ours, changes), (stock(delta_file), changes), (stock(lora_file), low_rank)
    return {
        way: _share_and_noise(layer_outputs(load(model), names), before, wanted)
        for way, (load, wanted) in zip(WAYS, loaders, strict=True)
    }


def _share_and_noise(after: dict, before: dict, changes: dict) -> list[float]:
    found, wanted = [], []
    for name, change in changes.items():
        generator = torch.Generator().manual_seed(5)
        found.append((after[name] - before[name]).flatten())
        wanted.append((torch.randn(64, change.shape[1], generator=generator) @ change.T).flatten())
    return list(share_and_noise(torch.cat(found), torch.cat(wanted)))


def _factors(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Random factors of a LoRA whose product has the norm of this change."""
    generator = torch.Generator().manual_seed(7)
    up, down = (torch.randn(size, generator=generator) for size in ((change.shape[0], RANK), (RANK, change.shape[1])))
    return up * (change.norm() / (up @ down).norm()), down


def _save_lora(path: Path, factors: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (up, down) in factors.items():
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
