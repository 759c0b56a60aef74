"""What a cell of the claims' table takes alone, part by part, on random latents: how many at a time are worth while.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.cell_times [--device cuda] [--work FOLDER] [--steps N]

A line is printed after each part, so that what is known stays when it is stopped.
"""

import argparse
import time
from pathlib import Path

import torch

from demo import comfy_host

SHARE, RATE, JUDGED, SHOWN = 0.023, 1e-4, 250, ("full", "LoRA", "AdaptFormer", "SaRA")


class Clock:
    """Prints what the time since the last line was for, once the device has done it."""

    def __init__(self, device: str):
        self._device, self._last = device, time.perf_counter()

    def told(self, what: str, times: int = 1) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._last
        each = f", {1000 * seconds / times:.1f} ms each" if times > 1 else ""
        print(f"{what}: {seconds:.2f} s{each}", flush=True)
        self._last = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where the icons are kept")
    parser.add_argument("--steps", type=int, default=100, help="of each training (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(arguments.device)
    comfy_host.prepare()

    from . import drawing, measures, protocol, training
    from .bench import Bench

    clock.told("importing ComfyUI")
    settings = training.Settings(steps=arguments.steps)
    bench = Bench(arguments.work / "icons", settings, device=arguments.device)
    model = bench.new_model()
    clock.told("a UNet, and beginning with the device")
    bench.verdicts, bench.autoencoder
    clock.told("judge and autoencoder")
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(protocol.PICTURES, 4, 8, 8, generator=generator).to(arguments.device)
    contexts = torch.randn(protocol.PICTURES, 77, 768, generator=generator).half().to(arguments.device)
    task = training.Task(latents, contexts, contexts, torch.zeros(77, 768, device=arguments.device))
    count = round(SHARE * sum(parameter.numel() for parameter in model.parameters()))
    training.train(bench.new_model, SHOWN[0], count, RATE, task, 0, training.Settings(steps=3))
    clock.told("three steps, to warm up")
    for method in SHOWN:
        training.train(bench.new_model, method, count, RATE, task, 0, settings)
        clock.told(f"{method}, {arguments.steps} steps with a new UNet", arguments.steps)
    asked = bench.asked(protocol.STYLES[0])[:JUDGED]
    model = model.requires_grad_(False).eval()
    pictures = drawing.decode(bench.autoencoder, drawing.draw(model, contexts[: len(asked)], task.empty, 0)).cpu()
    clock.told(f"drawing {len(asked)} pictures, of which a cell draws two for each name")
    style, shifted = protocol.STYLES[0], pictures.flip(0)
    measures.measure(bench.verdicts, style, pictures, shifted, pictures, pictures, asked, bench.choice)
    clock.told("judging them")


if __name__ == "__main__":
    main()
