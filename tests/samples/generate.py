"""Writes the samples of revision 665bf67: what people may have on their disks from then, and what must go on to work.

    git archive 665bf67 | tar -x -C CHECKOUT
    $(python dev.py host --python) -m tests.samples.generate CHECKOUT $(python dev.py host --path)

Everything here uses that revision's library, command line and nodes. The files stay as they are for ever; samples of
later revisions get a folder of their own.
"""

import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT, COMFYUI = (Path(argument).resolve() for argument in sys.argv[1:])
sys.path.insert(0, str(CHECKOUT))
# So that the revision's own tools take this host, and prepare none.
os.environ.update(COMFYUI_PATH=str(COMFYUI), COMFYUI_PYTHON=sys.executable)

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from devtools import ui_workflow as tools  # noqa: E402
from devtools.checkpoint import demo_checkpoint  # noqa: E402
from devtools.host import prepare  # noqa: E402
from devtools.in_process import InProcessHost  # noqa: E402
from devtools.server import Server  # noqa: E402
from sara_core import SaRA, SparseDelta, diffusers_bridge  # noqa: E402
from tests import tiny_diffusers, toy_models  # noqa: E402
from tests.samples.exact import digest, exact_pipeline, exact_weights  # noqa: E402
from tests.samples.runs import (  # noqa: E402
    COMMAND_RUN, COUNT, NODE_RUN, NODE_RUNS, OPTIMIZERS, STEPS_AFTER, STEPS_BEFORE, STOPPED_AFTER, latents_and_captions,
    small_net, train_small_net,
)  # fmt: skip
from tests.samples.workflow import put_files, ui_workflow  # noqa: E402

# Strengths at which a change times the strength is exact, so that the result is the same on every processor.
STRENGTHS = (1.0, -2.0)
SAID = {
    "title": "A sample", "author": "Somebody", "trigger_phrase": "sample style", "tags": "a, b",
    "description": "Two\nlines.",
}  # fmt: skip
FAMILIES = {
    "sd": tiny_diffusers.pipeline, "sdxl": tiny_diffusers.sdxl_pipeline, "sd3": tiny_diffusers.sd3_pipeline,
    "flux": tiny_diffusers.flux_pipeline,
}  # fmt: skip


def main() -> None:
    for name in ("deltas", "snapshots", "images"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).mkdir()
    with tempfile.TemporaryDirectory() as folder:
        library()
        command_line(Path(folder))
        host = InProcessHost(prepare(), Path(folder, "node"))
        nodes(host)
        workflows(Path(folder, "server"))
    (HERE / "samples.json").write_text(json.dumps(recorded(), indent=1) + "\n", encoding="utf-8")


def library() -> None:
    """States of the optimizer as a program of one's own saves them, and what came of going on."""
    for name, (kind, options) in OPTIMIZERS.items():
        model = small_net()
        optimizer = SaRA(model, count=COUNT, optimizer=kind, **options)
        train_small_net(model, optimizer, 0, STEPS_BEFORE)
        torch.save(optimizer.state_dict(), HERE / f"snapshots/library_{name}.pt")
        train_small_net(model, optimizer, STEPS_BEFORE, STEPS_BEFORE + STEPS_AFTER)
        optimizer.delta().save(HERE / f"deltas/library_{name}.safetensors")


def command_line(folder: Path) -> None:
    """Deltas of each family, and a stopped run of the first."""
    for number, color in enumerate(((255, 0, 0), (0, 0, 255), (0, 255, 0))):
        Image.new("RGB", (40 + 8 * number, 32), color).save(HERE / f"images/{number}.png")
        (HERE / f"images/{number}.txt").write_text(f"caption {number}\n")
    for family, make in FAMILIES.items():
        exact_pipeline(make(folder / "tokenizer")).save_pretrained(folder / family)
    for family in FAMILIES:
        options = COMMAND_RUN if family == "sd" else ("--count", "300", "--steps", "2", "--resolution", "32")
        train(folder / family, HERE / f"deltas/command_{family}.safetensors", *options)
    standard_error, sys.stderr = sys.stderr, _Terminal()
    try:
        train(folder / "sd", folder / "stopped.safetensors", *COMMAND_RUN, status=1)
    finally:
        sys.stderr = standard_error
    (snapshot,) = (folder / "stopped_snapshots").iterdir()
    shutil.copyfile(snapshot, HERE / "snapshots/command.safetensors")


class _Terminal:
    """Presses Ctrl-C when the line on a step is written."""

    def write(self, text: str) -> None:
        if text.startswith(f"step {STOPPED_AFTER} of"):
            signal.raise_signal(signal.SIGINT)

    def flush(self) -> None:
        pass


def train(base: Path, target: Path, *options: str, status: int = 0) -> None:
    sys.argv = ["sara_core", "train", str(base), str(HERE / "images"), str(target), *options]
    try:
        runpy.run_module("sara_core", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert ended.code == status, ended.code


def nodes(host: InProcessHost) -> None:
    """A stopped run and its delta for each optimizer, and the delta in both kinds of file."""
    import comfy.sd
    from comfy import model_management, utils

    latents, captions = latents_and_captions()
    shapes = {name: weight.shape for name, weight in toy_models.sd15_unet_state_dict().items()}
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(exact_weights(shapes), {"dtype": torch.float32})
    data = {"model": model, "latents": latents, "positive": captions}
    update = utils.ProgressBar.update_absolute

    def cancel_in_time(bar, step, *others):
        update(bar, step, *others)
        if step == STOPPED_AFTER:
            model_management.interrupt_current_processing(True)

    for name, (inputs, options) in NODE_RUNS.items():
        (options,) = host.execute("SaRATrainOptions", **options).outputs
        run = {**NODE_RUN, **inputs, **data, "options": options}
        delta, _ = host.execute("SaRATrain", **run).outputs
        utils.ProgressBar.update_absolute = cancel_in_time
        try:
            host.execute("SaRATrain", **run)
        except model_management.InterruptProcessingException:
            pass
        finally:
            utils.ProgressBar.update_absolute = update
        (snapshot,) = (host.base / "output/sara_snapshots").iterdir()
        snapshot.rename(HERE / f"snapshots/{name}.safetensors")
        for values in ("fp32", "bf16"):
            host.execute("SaRASave", delta=delta, filename_prefix=f"sara/{values}", values=values, **SAID)
            (saved,) = (host.base / "output/sara").glob(f"{values}_*.safetensors")
            saved.rename(HERE / f"deltas/{name}_{values}.safetensors")


def workflows(base: Path) -> None:
    """A workflow with every node as the page saves it, and as it queues it; both have run in this revision."""
    checkpoint = demo_checkpoint()
    put_files(base)
    with Server(prepare(), base, model_paths={"checkpoints": checkpoint.parent}) as server:
        info = server.client.object_info()
        workflow = ui_workflow(info, tools)
        prompt = tools.to_prompt(workflow, info)
        server.client.run(prompt)
    for node in prompt.values():
        node["_meta"] = {"title": info[node["class_type"]]["display_name"]}
    for name, content in (("workflow", workflow), ("prompt", prompt)):
        (HERE / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def recorded() -> dict:
    """What the deltas are, and what weights of whole numbers become with them."""
    found = {}
    for path in sorted((HERE / "deltas").iterdir()):
        delta = SparseDelta.load(path)
        applied = {}
        for strength in STRENGTHS:
            weights = exact_weights({name: entry.shape for name, entry in delta.entries.items()})
            delta.apply_(weights, strength)
            applied[str(strength)] = digest(weights)
        found[path.stem] = {"elements": delta.nnz, "weights": len(delta.entries), "applied": applied}
        family = path.stem.removeprefix("command_")
        if family in FAMILIES:
            found[path.stem]["applied in diffusers"] = applied_in_diffusers(family, delta)
    return found


def applied_in_diffusers(family: str, delta: SparseDelta) -> str:
    with tempfile.TemporaryDirectory() as folder:
        pipeline = exact_pipeline(FAMILIES[family](Path(folder, "tokenizer")))
    diffusers_bridge.load_delta(pipeline, delta)
    return digest(diffusers_bridge.denoiser(pipeline).state_dict())


if __name__ == "__main__":
    main()
