"""What training takes beyond a quantised model of SDXL's size, beside core's Train LoRA on the same file.

    python -m benchmarks.precision_.memory FILE METHOD RESULT_FILE

Each in a process of its own, because a peak cannot be taken back.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.lib.memory import give_back_freed_memory, memory, reset_high_water_mark
from benchmarks.lib.process import measured, run_module
from benchmarks.train_.run import SEED, StepRecorder, node_inputs, trained_elements
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import HostError, prepare

METHODS = ("SaRA", "LoRA bypass", "LoRA default")
STEPS, TRAINED, LATENT = 2, 15_000_000, 32
TOKENS, WIDTH, POOLED = 77, 2048, 1280
STORED = "fp8_e4m3fn"


def measure(_host, folder: Path, _device: str) -> list[dict]:
    """A record per method, in MiB and seconds, or with the words in which it ended."""
    unet = folder / "random-sdxl-fp8.safetensors"
    run_module("benchmarks.precision_.sdxl_file", [str(unet)])
    return [_measured(unet, method) for method in METHODS]


def _measured(unet: Path, method: str) -> dict:
    try:
        record = measured("benchmarks.precision_.memory", [str(unet), method])
    except HostError as error:
        record = {"method": method, "ended": str(error).splitlines()[-1]}
    print(json.dumps(record), file=sys.stderr, flush=True)  # each takes minutes, and the next one may be killed
    return record


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for record in records:
        if "ended" in record:
            rows.append([record["method"], "-", "-", "-", record["ended"]])
            continue
        mebibytes = (f"{record[name]:.0f}" for name in ("loaded", "growth"))
        rows.append([record["method"], *mebibytes, f"{statistics.median(record['steps']):.1f}", ""])
    return ["SDXL in fp8, training", "loaded, MiB", "growth, MiB", "step, s", "ended"], rows


def train(unet: Path, method: str, base: Path) -> dict:
    """One training with checkpointing, in a ComfyUI of this process: growth is its peak less the loaded model."""
    host = InProcessHost(prepare(), base)
    import torch

    host.folder_paths.add_model_folder_path("diffusion_models", str(unet.parent))
    model, = host.execute("UNETLoader", unet_name=unet.name, weight_dtype=STORED).outputs
    _make_resident(model)
    give_back_freed_memory()
    reset_high_water_mark()
    loaded = memory("VmRSS")
    generator = torch.Generator().manual_seed(SEED)
    latent = {"samples": torch.randn(1, 4, LATENT, LATENT, generator=generator)}
    caption = torch.randn(1, TOKENS, WIDTH, generator=generator)
    options = {"pooled_output": torch.randn(1, POOLED, generator=generator)}
    node, inputs = node_inputs(method, True, STEPS, TRAINED)
    recorder = StepRecorder()
    result = host.execute(node, model=model, latents=latent, positive=[[[caption, options]]], **inputs)
    peak = max(recorder.first_peak, memory("VmHWM"))
    return {
        "method": method,
        "precisions": sorted({str(weight.dtype) for weight in model.model.diffusion_model.parameters()}),
        "parameters": sum(weight.numel() for weight in model.model.diffusion_model.parameters()),
        "trained_elements": trained_elements(result.outputs[0]),
        "loaded": loaded,
        "peak": peak,
        "growth": peak - loaded,
        "steps": [end - begin for begin, end in zip(recorder.ends, recorder.ends[1:])],
        "losses": result.outputs[1]["loss"],
    }


def _make_resident(model) -> None:
    """Load a MODEL and read every byte of it, so that pages mapped from its file count as loaded too."""
    import comfy.model_management
    import torch

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        for weight in model.model.parameters():
            weight.view(torch.uint8).max()


if __name__ == "__main__":
    file, method, result_file = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as base:
        Path(result_file).write_text(json.dumps(train(Path(file), method, Path(base))), encoding="utf-8")
