"""What each of the claims' methods costs: seconds of the processor a step, memory, and the file of what it has learnt.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.costs [--steps N] [--rounds N]

Each training is in a process of its own, with one thread, on random latents and contexts, in batches as the table has
them. Memory is the peak above a process that has the UNet loaded. A file has its values in bf16: all parameters after
full fine-tuning, an adapter's own, a delta file for the sparse methods. LT-SFT takes the steps of both of its runs.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.lib.memory import give_back_freed_memory, memory, reset_high_water_mark
from benchmarks.lib.process import measured
from benchmarks.lib.report import Spread, text_table
from demo import comfy_host

from . import plan, protocol

SHARE, RATE = protocol.BUDGETS[1], 1e-4
SPARSE = ("LT-SFT", "SaRA")
FEW_STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="all methods in turn (default: %(default)s)")
    arguments = parser.parse_args()
    methods = plan.PAPERS + plan.BEYOND
    found: dict[str, list[dict]] = {method: [] for method in methods}
    for _ in range(arguments.rounds):
        for method, own in found.items():
            own.append(measured("benchmarks.claims_.costs", [method, str(arguments.steps)]))
    rows = [row(method, own, found[protocol.REFERENCE]) for method, own in found.items()]
    heads = ["", "trained", "s a step", "÷ LoRA's", "memory, MiB", "file, MB"]
    print("\n".join(text_table(heads, rows)))


def row(method: str, own: list[dict], reference: list[dict]) -> list[str]:
    """own, reference: a method's and LoRA's answers of the same rounds"""
    ratio = Spread.of(mine["step"] / other["step"] for mine, other in zip(own, reference))
    step, growth = (Spread.of(one[name] for one in own) for name in ("step", "growth"))
    return [
        method, f"{own[0]['trained']:,}", f"{step.median:.3f}",
        f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
        f"{growth.median:.0f}", f"{own[0]['file'] / 1e6:.2f}",
    ]  # fmt: skip


def measure(method: str, steps: int) -> dict:
    """One training, in this process."""
    from . import training
    from .bench import Bench

    torch.set_num_threads(1)
    comfy_host.prepare()
    bench = Bench(Path("unused"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(protocol.PICTURES, 4, 8, 8, generator=generator)
    contexts = torch.randn(protocol.PICTURES, 77, 768, generator=generator).half()
    task = training.Task(latents, contexts, contexts, torch.zeros(77, 768))
    model = bench.new_model()
    budget = round(SHARE * sum(parameter.numel() for parameter in model.parameters()))

    def train(steps: int) -> tuple[training.Trained, float]:
        start = time.process_time()
        settings = training.Settings(steps=steps)
        trained = training.train(bench.new_model, method, budget, RATE, task, 0, settings)
        return trained, time.process_time() - start

    train(FEW_STEPS)  # what a process does only once
    _, setting_up = train(FEW_STEPS)
    give_back_freed_memory()
    before = memory("VmRSS")
    reset_high_water_mark()
    trained, seconds = train(FEW_STEPS + steps)
    own = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    growth = memory("VmHWM") - before - own
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "learnt.safetensors")
        keep(method, trained.model, model, file)
        size = file.stat().st_size
    return {"trained": trained.count, "step": (seconds - setting_up) / steps, "growth": growth, "file": size}


def keep(method: str, trained: torch.nn.Module, base: torch.nn.Module, file: Path) -> None:
    """Write what the method's users would keep of a trained model."""
    from safetensors.torch import save_file

    from .changes import changes_of, sparse

    if method in SPARSE:
        sparse(changes_of(trained, base)).save(file, torch.bfloat16)
    else:
        own = {name: one.detach() for name, one in trained.named_parameters() if one.requires_grad}
        save_file({name: one.to(torch.bfloat16).contiguous() for name, one in own.items()}, file)


if __name__ == "__main__":
    # By another process of this module: a method, its steps, and where its answer belongs.
    if len(sys.argv) == 4 and sys.argv[1] in plan.PAPERS + plan.BEYOND:
        Path(sys.argv[3]).write_text(json.dumps(measure(sys.argv[1], int(sys.argv[2]))), encoding="utf-8")
    else:
        main()
