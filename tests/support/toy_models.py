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


def delta_entries(weights: dict[str, torch.Tensor], density: float = 0.01, seed: int = 0) -> dict[str, tuple]:
    """Random changes, large enough to show in every dtype: name → (indices, values, shape), at least one each."""
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name, weight in weights.items():
        count = max(1, round(weight.numel() * density))
        indices = torch.randperm(weight.numel(), generator=generator)[:count].sort().values.to(torch.int32)
        entries[name] = (indices, torch.randn(count, generator=generator) * 0.05, tuple(weight.shape))
    return entries


def changed(weight: torch.Tensor, entry: tuple, strength: float) -> torch.Tensor:
    """What the weight must be with strength · Δ: round(float32(weight) + strength · Δ) where there is a Δ."""
    indices, values, shape = entry
    flat = weight.detach().contiguous().view(-1).clone()
    flat[indices.long()] = (flat[indices.long()].float() + values.float() * strength).to(weight.dtype)
    return flat.view(shape)


def expected_weights(weights: dict[str, torch.Tensor], delta, strength: float) -> dict[str, torch.Tensor]:
    """All weights as they must be with the SparseDelta applied at this strength."""
    return {
        name: changed(weight, delta.entries[name], strength) if name in delta.entries else weight
        for name, weight in weights.items()
    }


def loaded_weights(model) -> dict[str, torch.Tensor]:
    """Copies of a MODEL's weights, as they are once ComfyUI has loaded it with its patches."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    return {name: weight.detach().clone() for name, weight in model.model.state_dict().items()}


def unload() -> None:
    """Make ComfyUI take every patch off again."""
    import comfy.model_management

    comfy.model_management.unload_all_models()


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not _same_bits(first[name], second[name])]
    assert not different, f"other bits: {different}"


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(first.contiguous().view(-1).view(torch.uint8), second.contiguous().view(-1).view(torch.uint8))


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # norms and biases: near the identity, so that activations stay in range
        return float(name.endswith("weight")) + 0.02 * torch.randn(shape, generator=generator)
    return torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5
