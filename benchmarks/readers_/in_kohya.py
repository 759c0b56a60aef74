"""What LyCORIS' reader of kohya's files makes of LoRA files.

    python -m benchmarks.readers_.in_kohya JOBS.json      in an environment with lycoris-lora

JOBS.json: a list of {family, weights (of a model, by the names that kohya's program has for the family), lora, to}. Of
each job, `to` and `to`.json are written (cases.read_changes).

sd-scripts and musubi-tuner are in no registry. They read files by the same rule: every layer of the model by its name,
with underscores for dots. A model here is no more than layers of those names.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

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

    weights = load_file(job["weights"])
    model = torch.nn.Module()
    for name, weight in weights.items():
        if name.endswith(".weight") and weight.dim() > 1:
            _add_layer(model, name.split(".")[:-1], weight)
    network, loaded = create_network_from_weights(1.0, job["lora"], None, None, model)
    network.merge_to(None, model, loaded, torch.float32, "cpu")
    after = model.state_dict()
    changed = {name: after[name] - weights[name] for name in after if not torch.equal(after[name], weights[name])}
    return {name: change.contiguous() for name, change in changed.items()}


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
