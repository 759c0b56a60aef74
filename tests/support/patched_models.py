"""MODELs of a few small layers in the host's own patcher, deltas and other patches for them, and what they must give.

Everything that is expected is computed from copies of the weights as they were made, by the host's way of patching.
"""

import torch

SHAPES = {"first": (12, 8), "second": (6, 12), "tied": (6, 12), "conv": (4, 3, 3, 3)}


class Deltas:
    """Patches of the pack's own class, from entries."""

    def __init__(self, adapter, entry):
        self._adapter, self._entry = adapter, entry

    def patches(self, names: tuple[str, ...], seed: int, count: int = 9) -> dict[str, object]:
        """Changes of some layers' weights; the elements depend on the layer, and on whether `seed` is even."""
        patches = {}
        for name in names:
            shape = torch.Size(SHAPES[name])
            positions = torch.Generator().manual_seed(len(name) + seed % 2)
            indices = torch.randperm(shape.numel(), generator=positions)[:count].sort().values.to(torch.int32)
            values = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.3
            patches[f"{name}.weight"] = self._adapter.of(self._entry(indices, values, tuple(shape)), set())
        return patches


def small_patcher(dtype: torch.dtype = torch.float32, seed: int = 0, channels_last: bool = False):
    """A ModelPatcher on the CPU with a model of SHAPES, whose layers `second` and `tied` share their weight."""
    import comfy.model_patcher
    import comfy.ops

    generator = torch.Generator().manual_seed(seed)
    operations = comfy.ops.disable_weight_init
    model = torch.nn.Module()
    model.first, model.second = operations.Linear(8, 12, dtype=dtype), operations.Linear(12, 6, dtype=dtype)
    model.tied, model.conv = operations.Linear(12, 6, dtype=dtype), operations.Conv2d(3, 4, 3, dtype=dtype)
    model.tied.weight = model.second.weight
    for parameter in model.parameters():
        parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator))
    if channels_last:
        model.conv.to(memory_format=torch.channels_last)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def copies(patcher) -> dict[str, torch.Tensor]:
    """The model's weights as they are now."""
    return {name: weight.detach().clone() for name, weight in patcher.model.state_dict().items()}


def as_the_host_patches(base: dict[str, torch.Tensor], patches: dict[str, list]) -> dict[str, torch.Tensor]:
    """Weights with these patches, weight by weight in float32 and from copies, as the host makes them on the CPU."""
    import comfy.float
    import comfy.lora

    made = dict(base)
    for key, of_key in patches.items():
        patched = comfy.lora.calculate_weight(of_key, base[key].to(torch.float32, copy=True), key)
        made[key] = comfy.float.stochastic_rounding(patched, base[key].dtype)
    return made


def load(*patchers, **options) -> None:
    import comfy.model_management

    comfy.model_management.load_models_gpu(list(patchers), **options)
