"""The demo: a style is trained, used and baked in a real ComfyUI, through its HTTP interface, as a client would.

Run by ``python dev.py demo``, in the host's interpreter.
"""

import argparse
import io
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from demo import settings
from demo.digits import WORDS, caption
from sara_core import SparseDelta

from .checkpoint import demo_checkpoint
from .comfyui.client import NodeProgress, PromptError
from .comfyui.install import ROOT, HostError, prepare
from .comfyui.server import Server
from .progress import Progress
from .templates import workflows
from .templates.picture_grid import picture_grid

STYLE_FOLDER = ROOT / "demo" / "style"
PREFIX = "sara-demo"
OPEN_PORT = 8188
SHOWN_DIGITS = (2, 3, 4, 5, 7, 8)


class Demo:
    """A running server, and what the demo makes with it in the folder ``output``."""

    def __init__(self, server: Server, checkpoint: str, output: Path, progress: Progress):
        self._server, self._checkpoint, self._output, self._progress = server, checkpoint, output, progress
        self._info = server.client.object_info()

    def train(self) -> str:
        """Train the style; leaves the delta and the loss curve, and returns the delta's name for SaRALoader."""
        prompt = workflows.train_style(self._info, self._checkpoint, PREFIX, settings.TRAINING, f"sara/{PREFIX}")
        outputs = self._run("Train a style", prompt)
        saved = self._server.output / workflows.output_of(prompt, outputs, "SaRASave")["text"][0]
        shutil.copyfile(saved, self._output / "delta.safetensors")
        plot = workflows.output_of(prompt, outputs, "LossGraphNode")["images"][0]
        (self._output / "loss.png").write_bytes(self._server.client.view(plot))
        return saved.name

    def bake(self, delta: str) -> str:
        """Bake the delta into the checkpoint; returns the new checkpoint's name for CheckpointLoaderSimple."""
        prompt = workflows.bake_delta(self._info, self._checkpoint, delta, f"checkpoints/{PREFIX}")
        outputs = self._run("Bake a delta", prompt)
        return Path(workflows.output_of(prompt, outputs, "SaRABake")["text"][0]).name

    def draw(self, delta: str, baked: str) -> None:
        """Draw each shown digit from one seed in four ways; leaves the grid of pictures."""
        rows = {
            "before": self._pictures(self._checkpoint, delta, settings.STYLE, with_delta=False),
            "with the delta": self._pictures(self._checkpoint, delta, settings.STYLE, with_delta=True),
            "baked": self._pictures(baked, delta, settings.STYLE, with_delta=False),
            "delta, no trigger": self._pictures(self._checkpoint, delta, "", with_delta=True),
        }
        picture_grid(rows, [WORDS[digit] for digit in SHOWN_DIGITS]).save(self._output / "grid.png")

    def run(self) -> dict[str, str]:
        """All three workflows; returns the rows of the closing table."""
        started = time.monotonic()
        delta = self.train()
        training_seconds = time.monotonic() - started
        baked = self.bake(delta)
        self.draw(delta, baked)
        return self._table(baked, training_seconds, time.monotonic() - started)

    def _pictures(self, checkpoint: str, delta: str, style: str, *, with_delta: bool) -> list[Image.Image]:
        pictures = []
        for digit in SHOWN_DIGITS:
            prompt = workflows.use_delta(
                self._info, checkpoint, delta, caption(digit, style), seed=digit, with_delta=with_delta
            )
            outputs = self._run(f"{checkpoint}, {'with' if with_delta else 'no'} delta: {WORDS[digit]}", prompt)
            file = workflows.output_of(prompt, outputs, "SaveImage" if with_delta else "PreviewImage")["images"][0]
            pictures.append(Image.open(io.BytesIO(self._server.client.view(file))))
        return pictures

    def _run(self, title: str, prompt: workflows.Prompt) -> dict[str, dict]:
        self._progress.say(title)

        def show(report: NodeProgress) -> None:
            kind = prompt[report.node_id]["class_type"]
            how_far = f" {report.value}/{report.maximum}" if report.maximum else ""
            self._progress.update(f"  {kind}{how_far}")

        return self._server.client.run(prompt, show)

    def _table(self, baked_name: str, training_seconds: float, seconds: float) -> dict[str, str]:
        file = self._output / "delta.safetensors"
        delta = SparseDelta.load(file)
        peak = self._server.peak_memory()
        memory = "not told by this system" if peak is None else f"{peak / 2**20:,.0f} MiB, the whole server process"
        return {
            "trained elements": f"{delta.nnz:,}",
            "density": f"{delta.density:.2%} of the weights it names",
            "delta file": f"{file.stat().st_size / 1e6:.2f} MB",
            "peak memory": memory,
            "seconds": f"{training_seconds:.0f} training, {seconds:.0f} in all",
            "delta": str(file),
            "loss curve": str(self._output / "loss.png"),
            "pictures": str(self._output / "grid.png"),
            "baked checkpoint": str(self._server.output / "checkpoints" / baked_name),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__.splitlines()[0])
    parser.add_argument("--open", action="store_true", help=f"keep ComfyUI running on 127.0.0.1:{OPEN_PORT} afterwards")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output", help="default: %(default)s")
    options = parser.parse_args(arguments)
    output = options.output.resolve()
    progress = Progress()
    try:
        host = prepare(progress=progress)
        checkpoint = demo_checkpoint(progress)
        base = output / "comfyui"
        _remove_earlier_results(base)
        shutil.copytree(STYLE_FOLDER, base / "input" / PREFIX)
        progress.say(f"starting ComfyUI on the CPU; its log is {base / 'server.log'}")
        port = OPEN_PORT if options.open else 0
        with Server(host, base, model_paths={"checkpoints": checkpoint.parent}, port=port) as server:
            table = Demo(server, checkpoint.name, output, progress).run()
            progress.say("done")
            width = max(map(len, table))
            print("\n".join(f"{name:<{width}}  {value}" for name, value in table.items()))
            if options.open:
                print(f"ComfyUI runs on {server.client.address} (Browse templates → comfyui-sara); Ctrl-C stops it.")
                server.wait()
    except (HostError, PromptError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _remove_earlier_results(base: Path) -> None:
    """What an earlier run left would pile up, or train along. Files that a user made there are kept."""
    for folder in ("sara", "checkpoints"):
        for file in (base / "output" / folder).glob(f"{PREFIX}_*.safetensors"):
            file.unlink()
    for folder in ("input", "output"):
        shutil.rmtree(base / folder / PREFIX, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
