"""A small random model in genuine SD1.5 layout, loaded by the host itself: 16 M parameters, nothing trained."""

import torch

# The smallest layout that ComfyUI recognises as SD1.5.
SD15_LAYOUT = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [0, 0],
    "transformer_depth_middle": -1,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}


def sd15_unet_state_dict(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights of the UNet, under its own names (input_blocks.…, without a prefix); needs comfy in sys.path."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in UNetModel(**SD15_LAYOUT).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator).to(dtype) for name, shape in shapes.items()}


def sd15_checkpoint(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The same weights under the names they have in a checkpoint file."""
    return {f"model.diffusion_model.{name}": tensor for name, tensor in sd15_unet_state_dict(seed, dtype).items()}


def sd15_model(seed: int = 0, dtype: torch.dtype = torch.float32):
    """A MODEL (ModelPatcher) made by ComfyUI from these weights."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(sd15_unet_state_dict(seed, dtype), model_options={"dtype": dtype})


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # norms and biases: near the identity, so that activations stay in range
        return float(name.endswith("weight")) + 0.02 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5
