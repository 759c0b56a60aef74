"""What people do in ComfyUI: every node of the pack, in a real host in this process, as its executor calls them."""

import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from .records import Records

CHECKPOINT = "base.safetensors"
# What the host says of time, which no two runs share.
OF_THE_RUN = ("seconds_per_step", "seconds_left", "memory")
CLOCK = re.compile(r"\b\d+:\d\d(:\d\d)?\b")
TRAINING = {
    "steps": 20, "density": 1.0, "learning_rate": 2e-3, "batch_size": 2, "adjust_at": "0.4", "seed": 5,
}  # fmt: skip
STOPPED_AFTER = 12
# Other ways to train, a few steps each: inputs of SaRATrain, and options of SaRATrainOptions.
OTHER_WAYS = {
    "count, low rank, accumulation": (
        {"select_by": "count", "count": 30_000, "low_rank_weight": 1e-3, "grad_accumulation": 2}, {}
    ),
    "threshold, attention only": ({"select_by": "threshold", "threshold": 0.003, "layers": "attention only"}, {}),
    "names, without checkpointing": (
        {"include": "attn2, bias", "exclude": "to_v", "gradient_checkpointing": False, "max_grad_norm": 0.1}, {}
    ),
    "SGD, linear": ({"learning_rate": 0.5}, {"optimizer": "SGD", "schedule": "linear"}),
    "Adafactor, min-SNR": ({}, {"optimizer": "Adafactor", "min_snr_gamma": 5.0}),
    "Adam, logit-normal": ({}, {"optimizer": "Adam", "noise_levels": "logit-normal", "weight_decay": 0.1}),
    "largest": ({}, {"selection_rule": "largest"}),
    "random": ({}, {"selection_rule": "random"}),
    "gradient": ({}, {"selection_rule": "gradient"}),
    "per layer": ({}, {"per_layer": True, "checkpoint_depth": 2}),
}
MERGES = {
    "sum": {}, "mean": {"preset": "attention only"}, "ties": {"keep": 40.0, "sign": "count"},
    "dare": {"keep": 60.0, "seed": 3, "blocks": "output_blocks = 0.5, 2"},
}  # fmt: skip
EXTRACTS = {
    "density": {"density": 0.05}, "count": {"select_by": "count", "count": 5000},
    "everything": {"select_by": "everything"},
}  # fmt: skip


class Nodes:
    """A host whose nodes are called, each call recorded with all that came of it."""

    def __init__(self, records: Records, inputs: Path, host: Path):
        # The driver's own, put into the checkout in the place of the revision's: how a host is started does not count.
        from devtools.comfyui.install import Host
        from devtools.comfyui.in_process import InProcessHost

        self.records = records
        base = records.folder.with_name("nodes base")
        for kind in ("checkpoints", "loras"):
            shutil.copytree(inputs / kind, base / "models" / kind, copy_function=os.link)
        self.comfy = InProcessHost(Host(host, Path(), is_users_own=False), base)
        self.output = base / "output"
        self.shown: list[str] = []
        self._listen()

    def _listen(self) -> None:
        """Keep what nodes show on themselves, as the page does."""
        import server

        def show(text: str, node_id: str) -> None:
            self.shown.append(CLOCK.sub("…", text))

        # News of a training come by the clock, other ones every time.
        server.PromptServer.instance = SimpleNamespace(send_progress_text=show, send_sync=lambda event, news: None)

    def run(self, name: str, node_id: str, **inputs):
        """The outputs of a node. Records those that can be compared, what it showed, and what the page gets of it."""
        random.seed(0)  # of which the host makes names of previews
        self.shown.clear()
        result = self.comfy.execute(node_id, **inputs)
        comparable = [output for output in result.outputs if not _is_of_the_host(output)]
        self.records.value(name, {"outputs": comparable, "page": _without_times(result.ui), "shown": self.shown})
        return result.outputs

    def weights(self, name: str, model) -> None:
        """Record the weights that a MODEL computes with once it is loaded."""
        import comfy.model_management

        with torch.inference_mode():
            comfy.model_management.load_models_gpu([model], force_full_load=True)
            self.records.value(name, model.model.diffusion_model.state_dict())


def _without_times(page):
    """What the page gets, but for what every run has its own of."""
    if isinstance(page, Mapping):
        return {key: _without_times(value) for key, value in page.items() if key not in OF_THE_RUN}
    if isinstance(page, (list, tuple)):
        return list(map(_without_times, page))
    return CLOCK.sub("…", page) if isinstance(page, str) else page


def _is_of_the_host(output) -> bool:
    """A MODEL, or what stands for one: of these the weights are compared."""
    return type(output).__name__ in ("ModelPatcher", "ModelPatcherDynamic", "CLIP", "VAE", "ExecutionBlocker")


def make(records: Records, inputs: Path, host: Path) -> None:
    """Write everything that this part compares."""
    nodes = Nodes(records, inputs / "comfyui", host)
    model, clip, vae = nodes.run("loaded", "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    data = _data(nodes, load_file(inputs / "comfyui/pictures.safetensors"), clip, vae)
    delta = _train(nodes, model, data, vae)
    nodes.weights("train/after it", model)
    second = _other_ways(nodes, model, data)
    _save_and_load(nodes, model, delta, data)
    _merge(nodes, delta, second)
    _bake_and_extract(nodes, delta)
    _convert(nodes, delta)
    _inspect(nodes, model, delta, data)
    shutil.move(nodes.output, records.folder / "output")
    shutil.rmtree(nodes.comfy.base)


def _data(nodes: Nodes, pictures: dict, clip, vae) -> dict:
    """The inputs of SaRATrain that are data."""
    latents, captions = [], []
    for number, caption in enumerate(("a handwritten digit three", "sunset style, a handwritten digit one", "")):
        pixels = pictures[str(number)]
        latents += nodes.run(f"data/latent {number}", "VAEEncode", pixels=pixels, vae=vae)
        captions += nodes.run(f"data/caption {number}", "CLIPTextEncode", text=caption, clip=clip)
    return {"latents": latents, "positive": captions}


def _train(nodes: Nodes, model, data: dict, vae):
    """A run to its end; and the same, stopped and gone on with. Returns the delta."""
    (options,) = nodes.run("train/options", "SaRATrainOptions", schedule="cosine", warmup_steps=3, snapshot_every=5,
                           snapshots_kept=2, caption_dropout=0.3, unconditional=data["positive"][2])  # fmt: skip
    (samples,) = nodes.comfy.execute(
        "SaRATrainSamples", positive=data["positive"][:1], negative=data["positive"][2:], vae=vae, every=10, steps=2
    ).outputs
    run = {**TRAINING, **data, "model": model, "options": options, "samples": samples}
    delta, _ = nodes.run("train/whole", "SaRATrain", **run)
    _stop(nodes, run)
    (snapshot,) = (nodes.output / "sara_snapshots").glob(f"*{STOPPED_AFTER:07}.safetensors")
    kept = nodes.records.path(f"train/{snapshot.name}")
    kept.write_bytes(snapshot.read_bytes())
    nodes.run("train/resumed", "SaRATrain", **run, resume=snapshot.name)
    return delta


def _stop(nodes: Nodes, run: dict) -> None:
    """Press Cancel in the middle of a run."""
    from comfy import model_management, utils

    update = utils.ProgressBar.update_absolute

    def cancel(bar, value, *others):
        update(bar, value, *others)
        if value == STOPPED_AFTER and bar.total == run["steps"]:
            model_management.interrupt_current_processing(True)

    utils.ProgressBar.update_absolute = cancel
    try:
        nodes.comfy.execute("SaRATrain", **run)
    except model_management.InterruptProcessingException:
        return
    finally:
        utils.ProgressBar.update_absolute = update
    raise RuntimeError("The training was not stopped.")


def _other_ways(nodes: Nodes, model, data: dict):
    """Short runs; the delta of the last one."""
    for name, (inputs, options) in OTHER_WAYS.items():
        connected = {}
        if options:
            (connected["options"],) = nodes.run(f"train/{name}, options", "SaRATrainOptions", **options)
        run = {**TRAINING, "steps": 3, **data, "model": model, **connected, **inputs}
        delta, _ = nodes.run(f"train/{name}", "SaRATrain", **run)
    return delta


def _save_and_load(nodes: Nodes, model, delta, data: dict) -> None:
    for values in ("fp32", "bf16"):
        nodes.run(f"save/{values}", "SaRASave", delta=delta, filename_prefix=f"sara/{values}", values=values,
                  title="Golden", tags="a, b", description="Two\nlines", model=model,
                  thumbnail=torch.linspace(0, 1, 8 * 8 * 3).view(1, 8, 8, 3))  # fmt: skip
    for strength in (1.0, -0.4, 0.0):
        patched, loaded, *_ = nodes.run(f"load/{strength}", "SaRALoader", model=model, strength=strength,
                                        sara_name="bf16_00001_.safetensors")  # fmt: skip
        nodes.weights(f"load/{strength}, weights", patched)
    applied, *_ = nodes.run("apply/after the loader", "SaRAApply", model=patched, delta=loaded, strength=0.5)
    nodes.weights("apply/after the loader, weights", applied)
    nodes.run("apply/drawn", "KSampler", model=applied, positive=data["positive"][0], negative=data["positive"][2],
              seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal",
              latent_image={"samples": torch.zeros(1, 4, 8, 8)})  # fmt: skip
    nodes.weights("apply/taken off", model)


def _merge(nodes: Nodes, first, second) -> None:
    for method, settings in MERGES.items():
        nodes.run(f"merge/{method}", "SaRAMerge", **{"deltas.delta_1": first, "deltas.delta_2": second}, method=method,
                  weights="0.6, -0.4", **settings)  # fmt: skip


def _bake_and_extract(nodes: Nodes, delta) -> None:
    (baked,) = nodes.run("bake", "SaRABake", ckpt_name=CHECKPOINT, delta=delta, strength=0.9)
    names = {"base_name": CHECKPOINT, "tuned_name": baked.removeprefix("checkpoints/")}
    for name, rule in {**EXTRACTS, "support": {"support": delta}}.items():
        nodes.run(f"extract/{name}", "SaRAExtract", **names, **rule)


def _convert(nodes: Nodes, delta) -> None:
    for file in sorted((nodes.comfy.base / "models/loras").iterdir()):
        nodes.run(f"convert/from {file.stem}", "SaRAConvert", file_name=file.name, base_name=CHECKPOINT, density=0.05)
    for kind in ("diff", "lora", "shira"):
        nodes.run(f"convert/to {kind}", "SaRAConvert", file_name="none", base_name="none", delta=delta, to=kind,
                  rank=2, filename_prefix=f"sara/{kind}")  # fmt: skip


def _inspect(nodes: Nodes, model, delta, data: dict) -> None:
    nodes.run("inspect/a delta", "SaRAInspect", delta=delta)
    *_, zeroed = nodes.run("inspect/both", "SaRAInspect", delta=delta, model=model, threshold=0.004)
    nodes.weights("inspect/zeroed", zeroed)
    nodes.run("inspect/a prediction", "SaRAInspect", model=model, positive=data["positive"][0],
              latent=data["latents"][0])  # fmt: skip
