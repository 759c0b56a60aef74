"""Models as the older WebUIs hold them, with a few layers of a few elements, and their checkpoints."""

import functools

import torch
from torch import nn

_CALLED = (nn.Linear, nn.GroupNorm, nn.LayerNorm)


def nested(layers):
    """Dotted name → layer, as modules within modules."""
    top = nn.Module()
    for name, layer in layers.items():
        *path, last = name.split(".")
        inside = top
        for word in path:
            if word not in inside._modules:
                inside.add_module(word, nn.Module())
            inside = inside._modules[word]
        inside.add_module(last, layer)
    return top


class _Around(nn.Module):
    """What the host puts around a text encoder."""

    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped


def unet():
    return nested({
        "diffusion_model.input_blocks.0.0": nn.Conv2d(4, 8, 3, padding=1),
        "diffusion_model.input_blocks.1.1.norm": nn.GroupNorm(4, 8),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.norm1": nn.LayerNorm(8),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": nn.Linear(8, 8, bias=False),
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_v": nn.Linear(8, 8, bias=False),
        "diffusion_model.out.2": nn.Conv2d(8, 4, 3, padding=1),
    })  # fmt: skip


def clip():
    """Name → layer."""
    layer = "transformer.text_model.encoder.layers.0"
    return {
        "transformer.text_model.embeddings.token_embedding": nn.Embedding(10, 8),
        f"{layer}.layer_norm1": nn.LayerNorm(8),
        f"{layer}.self_attn.q_proj": nn.Linear(8, 8),
        f"{layer}.mlp.fc1": nn.Linear(8, 16),
    }


def _open_clip():
    return nested({
        "model.transformer.resblocks.0.attn": nn.MultiheadAttention(8, 2),
        "model.transformer.resblocks.0.mlp.c_fc": nn.Linear(8, 16),
    })


class SDModel(nn.Module):
    """is_sdxl: with two text encoders, the second one OpenCLIP's"""

    def __init__(self, is_sdxl=False):
        super().__init__()
        self.is_sdxl, self.is_sd1, self.is_sd2, self.is_sd3, self.is_ssd = is_sdxl, not is_sdxl, False, False, False
        self.model = unet()
        self.first_stage_model = nested({"decoder.conv_in": nn.Conv2d(4, 4, 1)})
        if is_sdxl:
            self.conditioner = nn.Module()
            self.conditioner.embedders = nn.ModuleList([_Around(nested(clip())), _Around(_open_clip())])
        else:
            self.cond_stage_model = _Around(nested(clip()))
        self.sd_checkpoint_info = None

    def weights(self):
        """Every parameter by the name that a checkpoint has for it."""
        return {name.replace(".wrapped", ""): weight for name, weight in self.named_parameters()}


def is_of_text(name):
    return name.startswith(("cond_stage_model.", "conditioner."))


def is_of_unet(name):
    return name.startswith("model.")


@functools.cache
def checkpoint(seed, is_sdxl=False):
    """Name → tensor, fp32, of a model's whole checkpoint, not to be changed; some elements are −0.0, as trained ones
    are now and then."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(weight.shape, generator=generator) for name, weight in SDModel(is_sdxl).weights().items()
    }
    for tensor in drawn.values():
        tensor.view(-1)[0] = -0.0
    return drawn


def run(module):
    """A forward of every layer, in the model's order; what hangs on a layer's forward happens."""
    dtype = next(module.parameters()).dtype
    given = torch.zeros(1, 8, 8, dtype=dtype)
    for layer in list(module.modules()):
        if isinstance(layer, nn.MultiheadAttention):
            layer(given, given, given)
        elif isinstance(layer, nn.Conv2d):
            layer(torch.zeros(1, layer.in_channels, 4, 4, dtype=dtype))
        # Attention computes with the weight of its last projection, and never calls it.
        elif isinstance(layer, _CALLED) and not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
            layer(given)
