"""One delta or LoRA put on a model, exchanged and taken off again, measured in a ComfyUI of its own.

    python -m benchmarks.apply_.run SPECIFICATION_AS_JSON RESULT_FILE

The specification: unet (a file), base (a folder with the files of _apply_files), kind ("delta" or "lora"), files (two
names), dtype of the model's weights, and device. A peak of memory cannot be taken back, hence the fresh process.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.lib.memory import OthersWatch, give_back_freed_memory, memory, reset_high_water_mark
from benchmarks.train_.run import versions
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare

STRENGTH, OTHER_STRENGTH = 0.8, 1.0
MIB = 1 << 20


def measure(spec: dict) -> dict:
    """Memory in MiB and times in seconds; see the keys of the result."""
    unet, cuda = Path(spec["unet"]), spec["device"] == "cuda"
    host = InProcessHost(prepare(), Path(spec["base"]), spec["device"])
    import comfy.lora
    import comfy.utils
    import torch

    host.folder_paths.add_model_folder_path("diffusion_models", str(unet.parent))
    model, = host.execute("UNETLoader", unet_name=unet.name).outputs
    take_out_of_file(model, getattr(torch, spec["dtype"]))
    plain_load = seconds(lambda: load(model))
    before = checksums(model)
    file_reads = Calls(comfy.utils, "load_torch_file", str(unet))
    adding = Calls(comfy.lora, "calculate_weight")
    others = OthersWatch()

    loaded = resident_memory()
    patched, node = timed(lambda: loader_node(host, spec["kind"], model, spec["files"][0], STRENGTH))
    node_growth = memory("VmHWM") - loaded
    kept = resident_memory() - loaded
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    patch = seconds(lambda: load(patched))
    # The host's own entries are tuples with the whole weight; ours have the elements that were changed in place.
    host_copies = sum(entry.weight.nbytes for entry in patched.backup.values() if isinstance(entry, tuple)) / MIB
    if cuda:  # there the loaded model is the copy
        patch_growth = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / MIB
    else:
        patch_growth = memory("VmHWM") - loaded - kept - host_copies
    applied = resident_memory() - loaded - kept
    added, patched_weights = adding.seconds, len(patched.patches)

    switches = {}
    first, second = spec["files"]
    for what, file in (("strength", first), ("file", second), ("back", first)):
        patched, switch_node = timed(lambda: loader_node(host, spec["kind"], model, file, OTHER_STRENGTH))
        switches[f"switch_{what}"] = switch_node + seconds(lambda: load(patched))
        switches[f"switch_{what}_patch"] = switches[f"switch_{what}"] - switch_node
    unpatch = seconds(lambda: load(model))
    if checksums(model) != before:
        raise RuntimeError("Taking the patch off did not give the model back.")
    return {
        **spec,
        "plain_load": plain_load,
        "node": node,  # reads the file
        "patch": patch,  # until the patched model is loaded
        "adding": None if cuda else added,  # the part of it that is not the host's copying of weights
        **switches,
        "unpatch": unpatch,
        "model_file_reads": file_reads.count,
        "loaded": loaded,
        "node_growth": node_growth,  # at most, while the node runs
        "kept": kept,  # of it after the node
        "patch_growth": patch_growth,  # at most, beside what is kept and the host's copies of the weights it patches
        "host_copies": host_copies,
        "applied": applied,  # beside the model and what the node keeps, as long as the patch is on
        "patched_weights": patched_weights,
        "parameters": sum(weight.numel() for weight in model.model.parameters()),
        "cores_used_by_others": others.cores(),
        "versions": versions(torch),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
    }


def loader_node(host: InProcessHost, kind: str, model, file: str, strength: float):
    """The MODEL that the loader node makes, as in a graph."""
    if kind == "delta":
        return host.execute("SaRALoader", model=model, sara_name=file, strength=strength).outputs[0]
    return host.execute("LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength).outputs[0]


def load(model) -> None:
    import comfy.model_management
    import torch

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_full_load=True)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_out_of_file(model, dtype) -> None:
    """Give a MODEL copies of its weights: those mapped from a file come and go in memory as the system likes."""
    import comfy.utils
    import torch

    with torch.inference_mode():
        for name, weight in list(model.model.named_parameters()):
            comfy.utils.set_attr_param(model.model, name, weight.detach().to(dtype, copy=True))


def checksums(model) -> list[int]:
    """One number per weight, which an exchanged bit changes."""
    import torch

    integers = {2: torch.int16, 4: torch.int32}
    return [int(weight.view(integers[weight.itemsize]).sum()) for weight in model.model.parameters()]


def resident_memory() -> float:
    """What this process holds now; its high-water mark counts from here."""
    give_back_freed_memory()
    reset_high_water_mark()
    return memory("VmRSS")


def timed(function: Callable) -> tuple[object, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def seconds(function: Callable) -> float:
    return timed(function)[1]


class Calls:
    """Counts the calls of a module's function, those with this first argument if one is given, and their seconds."""

    def __init__(self, module, name: str, first=None):
        self.count, self.seconds = 0, 0.0
        original = getattr(module, name)

        def counted(*args, **kwargs):
            result, took = timed(lambda: original(*args, **kwargs))
            if first is None or args[0] == first:
                self.count += 1
                self.seconds += took
            return result

        setattr(module, name, counted)


if __name__ == "__main__":
    specification, result_file = sys.argv[1:]
    Path(result_file).write_text(json.dumps(measure(json.loads(specification))), encoding="utf-8")
