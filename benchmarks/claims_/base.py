"""What the base model of the claims learns from: icons of all sets for the autoencoder, Noto's with their names as
captions for the UNet. The UNet has the demo's layout (SD1.5, 15.9 M weights); so have the files."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from demo import base_unet
from demo.autoencoder import BATCH, LATENT_SCALE

from . import icon_sets, names, render

HERE = Path(__file__).resolve().parent
AUTOENCODER_FILE = HERE / "taesd.safetensors"
UNET_FILE = HERE / "unet.safetensors"
CAPTION_DROPOUT = 0.1
WORDY_CAPTIONS = 2  # of each picture
# None of them is in the name of a set of icons.
STYLE_WORDS = ("plain", "bold", "soft", "bright", "classic", "paper", "simple", "modern", "cartoon", "vivid", "neat")
LARGEST_SHIFT = 4  # pixels
COLOURED_GROUND_SHARE = 0.3


class NamedPictures(NamedTuple):
    """What the UNet learns from: latents [n, 4, 8, 8] fp32 as diffusion sees them, contexts [n, k, 77, 768] fp16 of k
    captions of each, empty [77, 768] of no caption."""

    latents: torch.Tensor
    contexts: torch.Tensor
    empty: torch.Tensor

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents [count, 4, 8, 8] and contexts [count, 77, 768] of a random batch, some captions left out."""
        rows = torch.randint(len(self.latents), (count,))
        contexts = self.contexts[rows, torch.randint(self.contexts.shape[1], (count,))].float()
        contexts[torch.rand(count) < CAPTION_DROPOUT] = self.empty
        return self.latents[rows], contexts


def picture_draws(folder: Path):
    """A function of NumPy's RandomState that draws a batch of icons of all sets, [BATCH, 64, 64, 3] in 0..1, half of
    them Noto's, shifted a little and some on a coloured ground."""
    sets = [render.pictures(icons, folder)[1] for icons in icon_sets.ALL]

    def draw(random: np.random.RandomState) -> torch.Tensor:
        drawn = []
        for _ in range(BATCH):
            pixels = sets[0 if random.rand() < 0.5 else random.randint(1, len(sets))]
            one = pixels[random.randint(len(pixels))].astype(np.float32) / 255
            one = np.roll(one, random.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, size=2), axis=(0, 1))
            if random.rand() < COLOURED_GROUND_SHARE:
                one = one * random.rand(3).astype(np.float32)
            drawn.append(one)
        return torch.from_numpy(np.stack(drawn))

    return draw


def base_pictures(folder: Path) -> tuple[list[str], torch.Tensor]:
    """Noto's names and pictures, [n, 64, 64, 3] in 0..1."""
    chosen, pixels = render.pictures(icon_sets.NOTO, folder)
    return chosen, torch.from_numpy(pixels).float() / 255


def named_pictures(checkpoint_file: Path, folder: Path, kept: Path) -> NamedPictures:
    """Noto's pictures and captions, encoded by a checkpoint's own autoencoder and text encoder, through ComfyUI.

    kept: encoded ones, which take minutes; written if it is not there, or older than the autoencoder
    """
    if kept.is_file() and kept.stat().st_mtime > AUTOENCODER_FILE.stat().st_mtime:
        return NamedPictures(*torch.load(kept, weights_only=True))
    encoded = _encoded(checkpoint_file, folder)
    torch.save(tuple(encoded), kept)
    return encoded


def _encoded(checkpoint_file: Path, folder: Path) -> NamedPictures:
    import comfy.sd

    import nodes

    _, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint_file), output_model=False)

    def context(text: str) -> torch.Tensor:
        return nodes.CLIPTextEncode().encode(clip, text)[0][0][0][0]

    chosen, pictures = base_pictures(folder)
    with torch.inference_mode():
        latents = torch.cat([vae.encode(part) for part in pictures.split(64)]).float() * LATENT_SCALE
        contexts = torch.stack([
            torch.stack([context(caption).half() for caption in captions(name, number)])
            for number, name in enumerate(chosen)
        ])  # fmt: skip
        return NamedPictures(latents.clone(), contexts.clone(), context("").float().clone())


def captions(name: str, number: int) -> list[str]:
    """Of the icon `number`: its name alone, and behind words of no style in particular, so that the model finds a name
    wherever it stands."""
    words = [STYLE_WORDS[(number + shift) % len(STYLE_WORDS)] for shift in range(WORDY_CAPTIONS)]
    return [names.caption(name), *(names.caption(name, f"{word} style") for word in words)]


def trained_autoencoder() -> torch.nn.Module:
    """The committed autoencoder: encode [n, 3, 64, 64] in -1..1 → [n, 4, 8, 8], decode the other way."""
    from safetensors.torch import load_file

    from demo import autoencoder, checkpoint

    model = autoencoder.new()
    tensors = load_file(AUTOENCODER_FILE)
    model.load_state_dict({name.removeprefix(checkpoint.AUTOENCODER_PREFIX): t.float() for name, t in tensors.items()})
    return model.eval().requires_grad_(False)


def trained_so_far() -> dict[str, torch.Tensor] | None:
    """The committed UNet's weights by the model's own names, fp32; None if there is none yet."""
    from safetensors.torch import load_file

    if not UNET_FILE.is_file():
        return None
    return {name.removeprefix(base_unet.UNET_PREFIX): tensor.float() for name, tensor in load_file(UNET_FILE).items()}
