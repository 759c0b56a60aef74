"""SaRA Train in this process on the demo's style, and the demo's model with what it has learnt.

To be imported before the host, which has a module of the name of our folder ``nodes``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from demo import evaluate, settings

from .comfyui.in_process import InProcessHost
from .demo import STYLE_FOLDER


class StyleTraining:
    """The demo's style, encoded for a model.

    Args:
        host: a started host.
        base: the demo's model, of ``demo.evaluate.load``.
    """

    def __init__(self, host: InProcessHost, base: evaluate.Checkpoint):
        self.host, self.base = host, base
        files = sorted(STYLE_FOLDER.glob("*.png"))
        pictures = [np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255 for file in files]
        self._style = self.encoded(pictures, [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files])

    def encoded(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> tuple[list, list]:
        """Latents and conditionings of pictures, float32 [height, width, 3] in 0..1, and of their captions."""
        pixels = [torch.from_numpy(picture)[None] for picture in pictures]
        latents = [self.host.execute("VAEEncode", pixels=one, vae=self.base.vae).outputs[0] for one in pixels]
        # Each text once: the encoder is ten times as large as the model.
        known = {text: self.host.execute("CLIPTextEncode", clip=self.base.clip, text=text).outputs[0]
                 for text in dict.fromkeys(texts)}  # fmt: skip
        return latents, [known[text] for text in texts]

    def train(self, **changes) -> tuple:
        """The delta that the demo's settings, with these changes, train; and the model with it."""
        latents, captions = self._style
        inputs = {**settings.TRAINING, **changes}
        delta, _ = self.host.execute(
            "SaRATrain", model=self.base.model, latents=latents, positive=captions, **inputs
        ).outputs
        patched, _ = self.host.execute("SaRAApply", model=self.base.model, delta=delta, strength=1.0).outputs
        return delta, self.base._replace(model=patched)
