"""What LyCORIS' reader of kohya's files makes of LoRA files.

    python -m benchmarks.readers_.in_kohya JOBS.json      in an environment with lycoris-lora

JOBS.json: a list of {family, weights (of a model, by the names that kohya's program has for the family), text (weights
of text encoders by a delta's names), lora, to}. Of each job, `to` and `to`.json are written (cases.read_changes).

sd-scripts and musubi-tuner are in no registry. They read files by the same rule: every layer of the model by its name,
with underscores for dots. A model here is no more than layers of those names.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

# Which text encoder the program counts as which; SD1.5 has one, which it does not count.
ENCODERS = {"SDXL": ("clip_l", "clip_g"), "SD3": ("clip_l", "clip_g", "t5xxl"), "Flux": ("clip_l", None, "t5xxl")}
LAYERS = {3: torch.nn.Conv1d, 4: torch.nn.Conv2d, 5: torch.nn.Conv3d}


def main() -> int:
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        to, said = Path(job["to"]), {}
        try:
            save_file(changes_in(job), to)
        except Exception as error:  # whatever a reader raises is its answer
            said = {"error": f"{type(error).__name__}: {error}"[:300]}
        to.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
    return 0


def changes_in(job: dict) -> dict[str, torch.Tensor]:
    """Name → change, of each weight that the file changes when LyCORIS merges it into the layers."""
    from lycoris.kohya import create_network_from_weights

    weights, text = load_file(job["weights"]), load_file(job["text"])
    model = _model(weights)
    encoders = {
        f"text_encoders.{encoder}.transformer.": _model(_behind(f"text_encoders.{encoder}.transformer.", text))
        for encoder in ENCODERS.get(job["family"], ("clip_l",))
    }
    counted = list(encoders.values()) if job["family"] in ENCODERS else next(iter(encoders.values()))
    network, loaded = create_network_from_weights(1.0, job["lora"], None, counted, model)
    network.merge_to(counted, model, loaded, torch.float32, "cpu")
    before, after = weights | text, model.state_dict()
    for prefix, encoder in encoders.items():
        after |= {prefix + name: weight for name, weight in encoder.state_dict().items()}
    changed = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    return {name: change.contiguous() for name, change in changed.items()}


def _behind(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _model(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.dim() > 1:
            _add_layer(model, name.split(".")[:-1], weight)
    return model


def _add_layer(model: torch.nn.Module, path: list[str], weight: torch.Tensor) -> None:
    for word in path[:-1]:
        if word not in dict(model.named_children()):
            model.add_module(word, torch.nn.Module())
        model = model.get_submodule(word)
    rows, columns, *kernel = weight.shape
    layer = LAYERS[weight.dim()](columns, rows, kernel, bias=False) if kernel else torch.nn.Linear(columns, rows, False)
    layer.weight = torch.nn.Parameter(weight.clone())
    model.add_module(path[-1], layer)


if __name__ == "__main__":
    sys.exit(main())
