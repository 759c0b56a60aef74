"""Captions as the model is told them, kept on the disk: encoding those of a style takes longer than a training."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch

from demo import checkpoint, text_encoder

from . import base

_NAME = "context"


def digest(file: Path) -> str:
    """What a file is known by where something depends on it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


class Contexts:
    """folder: for what is kept, by the text encoder that it comes from; ComfyUI must be importable.

    Several processes may use one folder at a time.
    """

    def __init__(self, folder: Path):
        self.folder = folder / f"contexts-{digest(Path(text_encoder.__file__))}"
        self._known: dict[str, torch.Tensor] = {}

    def of(self, captions: list[str]) -> torch.Tensor:
        """fp16 [n, 77, 768], one for each caption."""
        return torch.stack([self._of(caption) for caption in captions])

    def missing(self, captions: Iterable[str]) -> list[str]:
        """Those that are not yet kept, each once."""
        return [caption for caption in dict.fromkeys(captions) if not self._file(caption).is_file()]

    def keep(self, captions: Iterable[str]) -> None:
        """Encode those that are not yet kept."""
        for caption in self.missing(captions):
            checkpoint.write({_NAME: self._encoded(caption)}, self._file(caption))

    def checkpoint(self) -> Path:
        """The file of the text encoder, made when it is first asked for."""
        from safetensors.torch import load_file

        file = self.folder / "checkpoint.safetensors"
        if not file.is_file():
            checkpoint.assemble(file, load_file(base.UNET_FILE), load_file(base.AUTOENCODER_FILE))
        return file

    def _of(self, caption: str) -> torch.Tensor:
        if caption not in self._known:
            self._known[caption] = self._read(caption)
        return self._known[caption]

    def _read(self, caption: str) -> torch.Tensor:
        from safetensors.torch import load_file

        self.keep([caption])
        return load_file(self._file(caption))[_NAME]

    def _file(self, caption: str) -> Path:
        return self.folder / f"{hashlib.sha256(caption.encode()).hexdigest()[:32]}.safetensors"

    @torch.inference_mode()
    def _encoded(self, caption: str) -> torch.Tensor:
        return self._clip.encode_from_tokens(self._clip.tokenize(caption))[0].half()

    @cached_property
    def _clip(self):
        import comfy.sd

        return comfy.sd.load_checkpoint_guess_config(str(self.checkpoint()), output_model=False)[1]
