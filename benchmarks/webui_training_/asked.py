"""A WebUI as a round of trainings asks it: pictures with the lines below them, trainings, the model's digest."""

import base64
import hashlib
import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image

from benchmarks.webui_.server import PICTURE, Refused, WebUI
from devtools.comfyui.install import HostError
from sara_core.delta import SparseDelta, SparseEntry

OVER = ("finished", "stopped", "failed")
# SD1.5's checkpoints have none and nothing of SD1.5 reads it. Forge Neo makes one all the same, in memory that it gives
# no value, so that it has other bits each time that a checkpoint is loaded.
NOT_IN_THE_FILE = "clip_l.transformer.text_projection.weight"
BETWEEN_LOOKS, TRAINING_SECONDS = 0.1, 1800.0


class Asked:
    """data: the WebUI's folder"""

    def __init__(self, webui: WebUI, data: Path):
        self.webui, self.data = webui, data

    def choose(self, checkpoint: str, options: Mapping[str, str]) -> None:
        """As on the page: without drawing a picture. options: of the WebUI's, beside"""
        self.webui.post("/sdapi/v1/options", {**options, "sd_model_checkpoint": self.title(checkpoint)})

    def title(self, checkpoint: str) -> str:
        """What the WebUI calls one."""
        known = self.webui.get("/sdapi/v1/sd-models")
        return next(one["title"] for one in known if Path(one["model_name"]).name == checkpoint)

    def draw(self, prompt: str, **others: Any) -> tuple[str, list[str]]:
        """The digest of the picture's pixels, and our lines below it. others: of what the WebUI's API takes"""
        answer = self.webui.post("/sdapi/v1/txt2img", {"prompt": prompt, **PICTURE, **others})
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as picture:
            return hashlib.sha256(picture.tobytes()).hexdigest(), self.webui.lines()

    def passes(self, prompt: str, way: str = "txt2img", **others: Any) -> tuple[list[str], list[str]]:
        """What the UNet was in each of its forwards, and the pictures as the WebUI's API has them."""
        self.webui.get("/probe/passes", noting="true")
        answer = self.webui.post(f"/sdapi/v1/{way}", {"prompt": prompt, **PICTURE, **others})
        return self.webui.get("/probe/passes", noting="false"), answer["images"]

    def digests(self) -> dict[str, str]:
        """Of all tensors of UNet, text encoder and VAE, by name, but for NOT_IN_THE_FILE."""
        found = self.webui.get("/probe/digests")["model"]
        return {name: digest for name, digest in found.items() if not name.endswith(NOT_IN_THE_FILE)}

    def unet_digests(self) -> dict[str, str]:
        """Of all parameters of the UNet, by name."""
        return self.webui.get("/probe/digests")["unet"]

    def ended_with(self) -> dict[str, str]:
        """`unet_digests` of the moment before the last training put the base back; empty if none has."""
        return self.webui.get("/probe/digests")["ended with"]

    def unet(self) -> dict[str, torch.Tensor]:
        """The UNet's weights by the names that deltas have."""
        path = self.data / "unet.safetensors"
        self.webui.save_unet(path)
        return safetensors.torch.load_file(path)

    def delta(self, name: str) -> Path:
        """The file of a delta."""
        return self.webui.folder("sara") / f"{name}.safetensors"

    def entries(self, name: str) -> dict[str, SparseEntry] | None:
        """Of a delta; None if there is none."""
        path = self.delta(name)
        return dict(SparseDelta.load(path).entries) if path.exists() else None

    def refused(self, given: dict) -> str | None:
        """The sentence by which a training is refused at once; None if it is not, and then it is waited for."""
        try:
            self.start(given)
        except Refused as refused:
            return refused.sentence
        self.until_over()
        return None

    def train(self, given: dict) -> dict:
        """The status at the end of a training."""
        self.start(given)
        return self.until_over()

    def start(self, given: dict) -> None:
        """Begin a training."""
        self.webui.post("/sara/v1/train", given)

    def until_step(self, step: int) -> dict:
        """The status once this step is done, or the training over."""
        return self._once(lambda status: status["step"] >= step)

    def until_over(self) -> dict:
        """The status when the training is over."""
        return self._once(lambda status: False)

    def _once(self, is_reached) -> dict:
        end = time.monotonic() + TRAINING_SECONDS
        while time.monotonic() < end:
            status = self.webui.get("/sara/v1/status")
            if status["phase"] in OVER or is_reached(status):
                return status
            time.sleep(BETWEEN_LOOKS)
        raise HostError(f"A training did not end in {TRAINING_SECONDS:.0f} s: {json.dumps(status)}")
