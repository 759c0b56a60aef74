"""Adapter files with random values for small models of the host, and what the host makes of them."""

import math

import torch
from safetensors.torch import save_file

from tests.support.family_models import FAMILIES

# Modules of the small SD1.5 by the dimensions of their weights, and rows, columns and kernel.
MODULE = {2: "diffusion_model.time_embed.0", 4: "diffusion_model.middle_block.0.in_layers.2"}
LINEAR, CONVOLUTION = (1280, 320), (320, 320, (3, 3))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))


def lora(rows, columns, kernel=(), rank=4, up="lora_up.weight", down="lora_down.weight"):
    return {f".{up}": random(rows, rank, *[1 for _ in kernel]), f".{down}": random(rank, columns, *kernel)}


def locon(rows, columns, kernel, rank=4):
    """LoRA of a convolution with a Tucker core."""
    return {
        ".lora_up.weight": random(rows, rank, 1, 1),
        ".lora_down.weight": random(rank, columns, 1, 1),
        ".lora_mid.weight": random(rank, rank, *kernel),
    }


def loha(rows, columns, kernel=(), rank=4, core=False):
    tensors = {}
    for number in (1, 2):
        if core:
            tensors[f".hada_t{number}"] = random(rank, rank, *kernel, seed=number)
            tensors[f".hada_w{number}_a"] = random(rank, rows, seed=number)
            tensors[f".hada_w{number}_b"] = random(rank, columns, seed=number)
        else:
            tensors[f".hada_w{number}_a"] = random(rows, rank, seed=number)
            tensors[f".hada_w{number}_b"] = random(rank, columns * math.prod(kernel), seed=number)
    return tensors


def lokr(rows, columns, kernel=(), rank=2, first=False, second=False, core=False):
    tensors = {}
    if first:
        tensors |= {".lokr_w1_a": random(4, rank), ".lokr_w1_b": random(rank, 4)}
    else:
        tensors[".lokr_w1"] = random(4, 4)
    if core:
        tensors |= {".lokr_t2": random(rank, rank, *kernel), ".lokr_w2_a": random(rank, rows // 4, seed=1),
                    ".lokr_w2_b": random(rank, columns // 4, seed=2)}  # fmt: skip
    elif second:
        width = columns // 4 * math.prod(kernel)
        tensors |= {".lokr_w2_a": random(rows // 4, rank, seed=1), ".lokr_w2_b": random(rank, width, seed=2)}
    else:
        tensors[".lokr_w2"] = random(rows // 4, columns // 4, *kernel)
    return tensors


def dora(factors, rows, columns, kernel=(), by_column=False, alpha=2.0):
    ones = [1 for _ in kernel]
    scale = random(1, columns, *ones, seed=9) if by_column else random(rows, 1, *ones, seed=9)
    return {part: 0.1 * tensor for part, tensor in factors.items()} | {
        ".dora_scale": 1 + 0.1 * scale, ".alpha": torch.tensor(alpha),
    }  # fmt: skip


def oft(rows, size, alpha=None):
    tensors = {".oft_blocks": 0.1 * random(rows // size, size, size)}
    return tensors if alpha is None else tensors | {".alpha": torch.tensor(alpha)}


def boft(rows, size, steps, alpha, rescale=None):
    tensors = {".oft_blocks": 0.1 * random(steps, rows // size, size, size), ".alpha": torch.tensor(alpha)}
    return tensors if rescale is None else tensors | {".rescale": 1 + 0.1 * random(rows, *rescale)}


def glora(rows, columns, kernel=(), rank=4, early=False):
    ones = [1 for _ in kernel]
    shapes = {"a1": (columns, rank), "a2": (rank, columns), "b1": (rows, rank), "b2": (rank, columns)}
    if early:
        shapes = {"a1": (rank, columns), "a2": (columns, rank), "b1": (rank, columns), "b2": (rows, rank)}
        kernels = {"a1": kernel, "b1": kernel, "a2": ones, "b2": ones}
        shapes["a2"] = (columns * math.prod(kernel), rank)
    else:
        kernels = {"a1": ones, "a2": ones, "b1": ones, "b2": kernel}
    return {
        f".{part}.weight": 0.1 * random(*shape, *kernels[part], seed=number)
        for number, (part, shape) in enumerate(shapes.items())
    }


def adapter_file(path, module, tensors):
    """LoKr and others hold whole tensors that are no vectors, so a flat name is one."""
    save_file({module + part: tensor.contiguous() for part, tensor in tensors.items()}, path)
    return path


def family_file(family, path):
    """A checkpoint of the small model of a family, which may be given by its name."""
    weights = FAMILIES.get(family, family).state_dict()
    save_file({f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()}, path)
    return path


def dense(delta):
    changes = {name: torch.zeros(entry.shape) for name, entry in delta.entries.items()}
    delta.apply_(changes)
    return changes


def hosts_weights(model, path):
    """Weight → what it is with the host's Load LoRA at strength 1, float32, of all that the file changes."""
    import comfy.lora
    import comfy.sd
    import comfy.utils

    lora = comfy.utils.load_torch_file(str(path), safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    weights = model.model_state_dict()
    return {
        name: comfy.lora.calculate_weight(patches, weights[name].float().clone(), name)
        for name, patches in patched.patches.items()
    }


def assert_same_as_the_hosts(delta, model, path, tolerance=5e-6):
    """Applied to the model, the delta gives what the host's loader makes of the file; returns the changed names.

    tolerance: of the largest value of each weight
    """
    expected, weights = hosts_weights(model, path), model.model_state_dict()
    ours = {name: weights[name].float().clone() for name in expected}
    assert delta.entries.keys() == expected.keys()
    delta.apply_(ours)
    for name, weight in expected.items():
        assert not torch.equal(weight, weights[name]), name
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=tolerance * float(weight.abs().max()))
    return expected.keys()
