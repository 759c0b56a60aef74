"""One way of training, measured in a ComfyUI of its own: a fresh process, because a peak cannot be taken back.

    python -m benchmarks.train_.run UNET_FILE METHOD CHECKPOINTING STEPS TRAINED RESULT_FILE

The model is loaded completely before the high-water mark is reset, so that the growth is what training needs beyond
the model that any use of it needs.
"""

import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.memory import OthersWatch, give_back_freed_memory, memory, reset_high_water_mark
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare

LATENT_SIZE = 32
TOKENS, WIDTH = 77, 768
SEED = 1
RANK = 8


def node_inputs(method: str, gradient_checkpointing: bool, steps: int, trained: int) -> tuple[str, dict]:
    """(node id, inputs) of a method; whatever is not named here has the node's own default."""
    common = {"steps": steps, "batch_size": 1, "seed": SEED, "gradient_checkpointing": gradient_checkpointing}
    if method == "SaRA":
        return "SaRATrain", {**common, "select_by": "count", "count": trained}
    bypass = {"LoRA default": False, "LoRA bypass": True}[method]
    # Its default, bf16, would be another precision than the model's and than ours.
    precision = {"training_dtype": "fp32", "lora_dtype": "fp32"}
    return "TrainLoraNode", {**common, **precision, "rank": RANK, "bypass_mode": bypass}


def measure(unet: Path, method: str, gradient_checkpointing: bool, steps: int, trained: int, base: Path) -> dict:
    """Memory in MiB and times in seconds of one training; see the keys of the result."""
    host = InProcessHost(prepare(), base)
    import torch

    host.folder_paths.add_model_folder_path("diffusion_models", str(unet.parent))
    model, = host.execute("UNETLoader", unet_name=unet.name).outputs
    make_resident(model)
    loading_peak = memory("VmHWM")
    give_back_freed_memory()
    reset_high_water_mark()
    loaded = memory("VmRSS")

    generator = torch.Generator().manual_seed(SEED)
    latent = {"samples": torch.randn(1, 4, LATENT_SIZE, LATENT_SIZE, generator=generator)}
    conditioning = [[torch.randn(1, TOKENS, WIDTH, generator=generator), {}]]
    node, inputs = node_inputs(method, gradient_checkpointing, steps, trained)
    recorder = StepRecorder()
    start, others = time.perf_counter(), OthersWatch()
    result = host.execute(node, model=model, latents=latent, positive=[conditioning], **inputs)
    later_peak = memory("VmHWM")
    cores_used_by_others = others.cores()

    ends, losses = recorder.ends, result.outputs[1]["loss"]
    if len(ends) != steps or not all(map(math.isfinite, losses)):
        raise RuntimeError(f"{node} did not train: {len(ends)} of {steps} steps, losses {losses}")
    peak = max(recorder.first_peak, later_peak)
    return {
        "method": method,
        "gradient_checkpointing": gradient_checkpointing,
        "trained_elements": trained_elements(result.outputs[0]),
        "loading_peak": loading_peak,
        "loaded": loaded,
        "peak": peak,
        "growth": peak - loaded,
        "later_growth": later_peak - loaded,
        "first_step": ends[0] - start,
        "steps": [end - begin for begin, end in zip(ends, ends[1:])],
        "cores_used_by_others": cores_used_by_others,
        "losses": losses,
        "parameters": sum(weight.numel() for weight in model.model.diffusion_model.parameters()),
        "density_below_2e-4": density(model, 2e-4),
        "versions": versions(torch),
    }


def make_resident(model) -> None:
    """Load a MODEL and read every weight of it, so that pages mapped from its file count as loaded too."""
    import comfy.model_management
    import torch

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        for weight in model.model.parameters():
            weight.sum()


class StepRecorder:
    """Watches the host's progress bar, which both nodes move at the end of each step.

    ends: time of the end of every step
    first_peak: high-water mark at the end of the first step, MiB. It is reset then, so that the later steps are also
        seen alone: Train LoRA begins with a second copy of the model, whose file counts as resident while it loads.
    """

    def __init__(self):
        import comfy.utils

        self.ends, self.first_peak = [], math.nan
        original = comfy.utils.ProgressBar.update_absolute

        def update_absolute(bar, *args, **kwargs):
            self.ends.append(time.perf_counter())
            if len(self.ends) == 1:
                self.first_peak = memory("VmHWM")
                reset_high_water_mark()
            return original(bar, *args, **kwargs)

        comfy.utils.ProgressBar.update_absolute = update_absolute


def trained_elements(trained) -> int:
    """Size of what a node returns: a sparse delta, or a LoRA as name → tensor."""
    return trained.nnz if hasattr(trained, "nnz") else sum(tensor.numel() for tensor in trained.values())


def density(model, threshold: float) -> float:
    """Share of Linear and convolution weights whose size is below ``threshold``."""
    weights = [weight for weight in model.model.diffusion_model.parameters() if weight.dim() > 1]
    below = sum(int((weight.abs() < threshold).sum()) for weight in weights)
    return below / sum(weight.numel() for weight in weights)


def versions(torch) -> dict:
    import comfyui_version

    return {
        "ComfyUI": comfyui_version.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    unet, method, checkpointing, steps, trained, result_file = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as base:
        result = measure(Path(unet), method, checkpointing == "on", int(steps), int(trained), Path(base))
        Path(result_file).write_text(json.dumps(result), encoding="utf-8")
