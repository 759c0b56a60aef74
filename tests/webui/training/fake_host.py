"""A WebUI that trains, without a WebUI: a small UNet of the WebUIs' own names, a VAE and a text encoder of a few lines.
"""

import contextlib
import hashlib

import torch
from torch import nn

from sara_core.errors import UnsupportedModelError

SIDE, CHANNELS, WIDTH = 8, 4, 16


class ResBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(4, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x, emb):
        return x + self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]


class BasicTransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))

    def forward(self, x, context):
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.to_q(tokens), self.to_k(context), self.to_v(context)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + found.transpose(1, 2).reshape(batch, channels, height, width)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.input_blocks = nn.ModuleList([nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), ResBlock()])
        self.middle_block = BasicTransformerBlock()
        self.out = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(self, x, timesteps, context):
        emb = self.time_embed(timesteps.float()[:, None] / 1000)
        x = self.input_blocks[0](x)
        return self.out(self.middle_block(self.input_blocks[1](x, emb), context))


class FakeModel:
    """A host.TrainedModel."""

    name, prediction, clip_skip, patch, is_half = "fake.safetensors", "eps", 1, SIDE, False
    has_diffusers_names = False
    device = torch.device("cpu")
    signal = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)

    def __init__(self, unet):
        self.unet, self.forwards = unet, 0

    def latent(self, pixels, seed):
        small = nn.functional.avg_pool2d(pixels.permute(2, 0, 1)[None], SIDE)[0]
        return torch.cat([small, small.mean(0, keepdim=True)]) * 2 - 1

    def conditions(self, caption, size):
        seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "little")
        tokens = 3 + len(caption.split())
        return {"crossattn": torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))}

    def predict(self, unet, noisy, timesteps, conditions):
        self.forwards += type(noisy) is torch.Tensor  # and not one without content, of which the memory is foretold
        return unet(noisy, timesteps, conditions["crossattn"])

    def picture(self, latent):
        return latent[:3].repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2).permute(1, 2, 0) / 2 + 0.5


class FakeHost:
    """A host.TrainingHost. refused: what it says of the chosen model; interrupted_after: forwards, None for never"""

    def __init__(self, folder, interrupted_after=None):
        torch.manual_seed(0)
        self.unet = UNet()
        self.deltas, self.outputs, self.pictures = folder / "models", folder / "outputs", folder / "pictures"
        self.refused, self.interrupted_after = None, interrupted_after
        self.model = FakeModel(self.unet)
        self.entered, self.refreshed, self.steps = [], 0, []

    def loaded_unet(self):
        return self.unet

    @contextlib.contextmanager
    def working(self):
        self.entered.append("working")
        try:
            yield
        finally:
            self.entered.append("not working")

    @contextlib.contextmanager
    def ready(self):
        assert self.entered[-1] == "working"
        if self.refused is not None:
            raise UnsupportedModelError(self.refused)
        yield self.model

    def is_interrupted(self):
        return self.interrupted_after is not None and self.model.forwards >= self.interrupted_after

    def show_step(self, step, steps):
        self.steps.append((step, steps))

    def refresh(self):
        self.refreshed += 1


def digest(unet):
    """Every bit of it, and what of its modules training could leave changed."""
    result = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        result.update(name.encode() + tensor.numpy().tobytes())
    for module in unet.modules():
        result.update(repr((type(module).__name__, sorted(vars(module)), module.training)).encode())
    for parameter in unet.parameters():
        result.update(bytes([parameter.requires_grad, parameter.grad is None]))
    return result.hexdigest()
