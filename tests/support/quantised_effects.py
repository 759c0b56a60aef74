"""What a change of quantised weights does to the outputs of their layers, beside what it should."""

import torch

from tests.support import quantised_models
from tests.support.quantised_models import is_quantised
from tests.support.toy_models import delta_entries


def delta_of(pack, family="Flux", scale=1.0, of=lambda name, weight: weight.dim() > 1):
    """Random changes of every matrix and convolution, under the names that the host gives them."""
    weights = {
        f"diffusion_model.{name}": weight
        for name, weight in quantised_models.bf16_weights(family).items()
        if of(name, weight)
    }
    entries = {
        name: pack.SparseEntry(indices, values * scale, shape)
        for name, (indices, values, shape) in delta_entries(weights).items()
    }
    return pack.SparseDelta(entries, {"sara.family": family})


def layer_outputs(patcher, names, seed=5, load=True, dtype=torch.float32):
    """What each of the layers gives for random input of a dtype, inside of a call of the loaded MODEL."""
    import comfy.model_management
    import comfy.patcher_extension as extension

    if load:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)

    def compute():
        results = {}
        for name in names:
            layer = patcher.model.get_submodule(name)
            generator = torch.Generator().manual_seed(seed)
            width = getattr(layer, "in_features", None) or layer.weight.shape[1]
            results[name] = layer(torch.randn(64, width, generator=generator).to(dtype))
        return results

    calls = extension.get_all_wrappers(extension.WrappersMP.APPLY_MODEL, patcher.model_options, is_model_options=True)
    with torch.inference_mode():
        return extension.WrapperExecutor.new_class_executor(compute, patcher.model, calls).execute()


def dense(entry):
    change = torch.zeros(entry.shape)
    change.view(-1)[entry.indices.long()] = entry.values
    return change


def share_and_noise(found, wanted):
    share = float((found * wanted).sum() / wanted.square().sum())
    return share, float((found - share * wanted).norm() / wanted.norm())


def is_whole(found, wanted):
    share, noise = share_and_noise(found, wanted)
    return abs(share - 1) < 1e-3 and noise < 1e-3


def quantised_layers(family="Flux"):
    weights = quantised_models.bf16_weights(family)
    return [f"diffusion_model.{name}".removesuffix(".weight") for name in weights if is_quantised(name, weights[name])]
