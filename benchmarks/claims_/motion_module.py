"""An AnimateDiff-style motion module: temporal layers alone, trained by our engine beside a frozen picture model in
SD1.5's layout, and kept as such modules are.

The picture model is diffusers' class with SD1.5's four stages, narrow, on pixels without colour: its 4 values are 2×2
pixels. It learns single frames, an icon anywhere; the module makes of frames that know nothing of each other a clip
that moves left (https://arxiv.org/abs/2307.04725).
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import methods, motion_clips, motion_judge, motion_model, names
from .training import Settings, descend

TAUGHT = "left"
TEMPORAL = "temporal layers only"
FOLD = 2
STEPS_DRAWN = 20
PICTURES, MODULE = Settings(steps=3000, batch=4), Settings(steps=2500, batch=4)
PICTURES_RATE, MODULE_RATE = 1e-3, 5e-3
WIDTHS, LAYERS, HEADS, GROUPS = (32, 32, 64, 64), 1, 4, 16
SHARE = 0.5  # of the module's weights: all at once would be no sparse training
# AnimateDiff's names of the parts of a block; it has the positions once for each attention, diffusers for both.
_PARTS = {"norm1": "norms.0", "norm2": "norms.1", "norm3": "ff_norm", "attn1": "attention_blocks.0",
          "attn2": "attention_blocks.1"}  # fmt: skip
_POSITIONS = "pos_embed.pe"


def original_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A MotionAdapter's weights under the names that AnimateDiff's own files have, which other programs read."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"(motion_modules\.\d+\.)", r"\1temporal_transformer.", name)
        if name.endswith(_POSITIONS):
            for part in ("attention_blocks.0", "attention_blocks.1"):
                renamed[name.replace(_POSITIONS, f"{part}.pos_encoder.pe")] = tensor.clone()
            continue
        renamed[re.sub(r"\.(norm[123]|attn[12])\.", lambda found: f".{_PARTS[found[1]]}.", name)] = tensor
    return renamed


def new_picture_model() -> torch.nn.Module:
    """An untrained picture model; from torch's seed."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=motion_clips.SIZE // FOLD, block_out_channels=WIDTHS, attention_head_dim=HEADS,
        cross_attention_dim=motion_model.TEXT_WIDTH, norm_num_groups=GROUPS, layers_per_block=LAYERS,
    )  # fmt: skip


def with_new_module(pictures: torch.nn.Module) -> torch.nn.Module:
    """A picture model with a motion module that does nothing yet; from torch's seed."""
    from diffusers import MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=pictures.config["block_out_channels"], motion_num_attention_heads=HEADS,
        motion_norm_num_groups=GROUPS, motion_layers_per_block=pictures.config["layers_per_block"],
    )  # fmt: skip
    for name, parameter in adapter.named_parameters():
        if ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return UNetMotionModel.from_unet2d(pictures, adapter)


def folded(frames: torch.Tensor) -> torch.Tensor:
    """Clips float [n, t, h, w, 3] in 0..1, without their colour → latents [n, 4, t, h / 2, w / 2]."""
    ink = motion_model.CONTRAST * (1 - frames.mean(-1, keepdim=True)).flatten(0, 1).permute(0, 3, 1, 2)
    return F.pixel_unshuffle(ink, FOLD).unflatten(0, frames.shape[:2]).transpose(1, 2)


def unfolded(latents: torch.Tensor) -> torch.Tensor:
    """The way back, grey, within 0..1."""
    ink = F.pixel_shuffle(latents.transpose(1, 2).flatten(0, 1), FOLD) / motion_model.CONTRAST
    grey = (1 - ink).clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
    return grey.unflatten(0, (latents.shape[0], latents.shape[2]))


def train_pictures(
    model: torch.nn.Module, icons: dict[str, np.ndarray], rate: float, settings: Settings
) -> list[float]:
    """Teach a picture model single frames of all motions; the losses. Every clip is as many pictures as frames."""

    def frames(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents, given = _clips(icons, settings.batch, step, list(motion_clips.WAYS))
        times = latents.shape[2]
        return latents.transpose(1, 2).flatten(0, 1), given.repeat_interleave(times, 0)

    return _train(model, methods.full(model, 0), frames, rate, settings)


def train_module(model: torch.nn.Module, icons: dict[str, np.ndarray], rate: float, settings: Settings) -> list[float]:
    """Teach the smaller half of the motion module's weights, and nothing else, one motion by our engine; the losses.

    What the module adds to a layer is 0 at first, so that half has all of the weights that it is added by.
    """
    model.requires_grad_(False)
    module = methods.sara(model, round(SHARE * _size(model)), adjust_at=(), preset=TEMPORAL)
    return _train(model, module, lambda step: _clips(icons, settings.batch, step, [TAUGHT]), rate, settings)


def _size(model: torch.nn.Module) -> int:
    """How many weights the layers of its motion module have."""
    return sum(layer.weight.numel() for name, layer in methods.layers(model).items() if ".motion_modules." in name)


def _train(model, trainable: methods.Trainable, examples, rate: float, settings: Settings) -> list[float]:
    scheduler, losses = _scheduler(), []

    def loss_of(step: int) -> torch.Tensor:
        latents, given = examples(step)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(len(scheduler.betas), (len(latents),), generator=generator)
        predicted = _predict(model, scheduler.add_noise(latents, noise, times), times, given)
        loss = (predicted - noise).square().mean()
        losses.append(loss.item())
        return loss

    descend(trainable, loss_of, rate, settings)
    return losses


def _predict(model, noisy: torch.Tensor, times: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """The noise of pictures or of clips; given: contexts of each, which the model wants of every frame."""
    per_clip = noisy.shape[2] if noisy.ndim == 5 else 1
    return model(noisy, times, given.repeat_interleave(per_clip, 0)).sample


def _clips(icons: dict[str, np.ndarray], count: int, step: int, motions: list[str]):
    """Latents and contexts, of names alone, that the step decides."""
    random, known = np.random.RandomState(step), list(icons)
    wanted = [(known[random.randint(len(known))], motions[random.randint(len(motions))]) for _ in range(count)]
    frames = motion_clips.clips(icons, wanted, seed=step).frames
    return folded(frames), _contexts([name for name, _ in wanted])


def _contexts(asked: Sequence[str]) -> torch.Tensor:
    return motion_model.contexts([names.caption(name) for name in asked])


def _scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )


@torch.no_grad()
def draw(model: torch.nn.Module, asked: Sequence[str], seed: int) -> torch.Tensor:
    """A clip of each name, float [n, FRAMES, SIZE, SIZE, 3] in 0..1, grey."""
    scheduler, given, side = _scheduler(), _contexts(asked), motion_clips.SIZE // FOLD
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(asked), FOLD**2, motion_clips.FRAMES, side, side, generator=generator)
    scheduler.set_timesteps(STEPS_DRAWN)
    for time in scheduler.timesteps:
        x = scheduler.step(_predict(model, x, time, given), time, x).prev_sample
    return unfolded(x)


def save(model: torch.nn.Module, folder: Path) -> Path:
    """Write a model's motion module as diffusers keeps it, into `folder`, and beside that in AnimateDiff's own names;
    the file of the latter."""
    from diffusers import MotionAdapter
    from safetensors.torch import save_file

    model.save_motion_modules(folder)
    file = folder / "motion_module.safetensors"
    save_file(original_names(MotionAdapter.from_pretrained(folder).state_dict()), file)
    return file


def measured(icons: dict[str, np.ndarray], pictures: Settings = PICTURES, module: Settings = MODULE) -> dict:
    """Train a picture model, then a motion module beside it, and judge the clips of its names: new is the share that
    moves as was taught, off the mean distance from that in pixels, each beside the picture model's alone. Whether it
    comes back: loaded from diffusers' folder and from AnimateDiff's file it gives the same clips to the bit.

    icons: name → uint8 [ICON, ICON, 3]
    """
    torch.manual_seed(0)
    base = new_picture_model()
    train_pictures(base, icons, PICTURES_RATE, pictures)
    model, asked = with_new_module(base.eval()).eval(), list(icons)
    alone = draw(model, asked, seed=1)
    losses = train_module(model, icons, MODULE_RATE, module)
    moved = draw(model, asked, seed=1)
    return {
        "trained": round(SHARE * _size(model)),
        "new": motion_judge.share(moved, TAUGHT), "off": motion_judge.off(moved, TAUGHT),
        "new alone": motion_judge.share(alone, TAUGHT), "off alone": motion_judge.off(alone, TAUGHT),
        "first loss": float(np.mean(losses[:50])), "last loss": float(np.mean(losses[-50:])),
        "comes back": _comes_back(base, model, asked[:4]),
    }  # fmt: skip


def _comes_back(base: torch.nn.Module, model: torch.nn.Module, asked: list[str]) -> bool:
    from diffusers import MotionAdapter, UNetMotionModel

    expected = draw(model, asked, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        file = save(model, Path(folder))
        loaded = MotionAdapter.from_pretrained(folder), MotionAdapter.from_single_file(str(file), config=folder)
    return all(
        torch.equal(draw(UNetMotionModel.from_unet2d(base, one).eval(), asked, seed=1), expected) for one in loaded
    )
