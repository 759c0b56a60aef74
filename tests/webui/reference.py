"""What a WebUI's weights must be, computed from the checkpoint and from what a prompt's tags name alone.

base, then LoRA after LoRA as the host merges them, each rounded; on that, all deltas in one sum, rounded once.
"""

import re

import torch
from sara_core import SparseDelta, SparseEntry
from tests.webui.fakes.models import is_of_text

_TAG = re.compile(r"<(?:sara|lora):(\w+)(?::([^:>]+))?(?::([^:>]+))?>")
_CLIP_G = "transformer.text_model.encoder.layers.0.self_attn."


def delta_of(base, seed, names=lambda name: True, scale=0.3):
    """A delta of a checkpoint's weights, a third of the elements of each, by the names that its files have.

    base: name → tensor; names: which of these are changed
    """
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name, weight in base.items():
        if not names(name):
            continue
        for own, shape in _own_names(name, tuple(weight.shape)):
            numel = torch.Size(shape).numel()
            indices = torch.randperm(numel, generator=generator)[: max(1, numel // 3)].sort().values.int()
            values = torch.randn(len(indices), generator=generator) * scale
            values[0] = 0.0  # of an element that is −0.0 in the base: it stays
            entries[own] = SparseEntry(indices, values, shape)
    return SparseDelta(entries, {"sara.version": "1", "sara.family": "SD1.5"})


def _own_names(name, shape):
    """What a delta calls a checkpoint's weight: one name, three for what OpenCLIP has in one, none for a VAE's."""
    if name.startswith("first_stage_model."):
        return []
    for theirs, own in (
        ("model.diffusion_model.", "diffusion_model."),
        ("cond_stage_model.", "text_encoders.clip_l."),
        ("conditioner.embedders.0.", "text_encoders.clip_l."),
    ):
        if name.startswith(theirs):
            return [(own + name.removeprefix(theirs), shape)]
    stem = "text_encoders.clip_g."
    last = name.removeprefix("conditioner.embedders.1.model.transformer.resblocks.0.")
    if last.startswith("attn.in_proj_"):
        kind = last.removeprefix("attn.in_proj_")
        return [(f"{stem}{_CLIP_G}{row}_proj.{kind}", (shape[0] // 3, *shape[1:])) for row in "qkv"]
    if last.startswith("attn."):
        return [(f"{stem}{_CLIP_G}{last.removeprefix('attn.')}", shape)]
    return [(f"{stem}transformer.text_model.encoder.layers.0.mlp.fc1.{last.rpartition('.')[2]}", shape)]


def lora_of(base, seed):
    """Name → tensor of a LoRA of rank 2 on the Linear layers, as kohya's trainer names them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in base.items():
        if (stem := _lora_name(name)) is not None and weight.dim() == 2:
            tensors[f"{stem}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=generator) * 0.3
            tensors[f"{stem}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=generator) * 0.3
            tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    return tensors


def _lora_name(name):
    flat = name.removesuffix(".weight").replace(".", "_")
    if not name.endswith(("to_q.weight", "to_v.weight", "q_proj.weight", "fc1.weight")):
        return None
    return flat.replace("model_diffusion_model", "lora_unet", 1).replace("cond_stage_model_transformer", "lora_te", 1)


def expected(base, prompt, content, lora_in_weights=True, in_float32=False):
    """Name → weight under a prompt's tags; without the LoRAs where the host leaves weights alone.

    base: of the checkpoint, in the model's dtype; content: name in a tag → the delta, or a LoRA's tensors
    in_float32: whether the host adds its LoRAs in float32, and rounds them together with the deltas
    """
    merged_in = torch.float32 if in_float32 else None
    weights = {name: tensor.to(merged_in or tensor.dtype, copy=True) for name, tensor in base.items()}
    tags = [(name, float(text or 1), float(unet or text or 1)) for name, text, unet in _TAG.findall(prompt)]
    sums = {}
    for name, text, unet in tags:
        if lora_in_weights and isinstance(content[name], dict):
            _merge(weights, content[name], text, unet)
    for name, text, unet in sorted(tags):
        if isinstance(content[name], SparseDelta):
            _add(sums, content[name], base, text, unet)
    for name, (dense, hit) in sums.items():
        changed = (weights[name].float() + dense).to(weights[name].dtype)
        weights[name] = torch.where(hit, changed, weights[name])
    return {name: weight.to(base[name].dtype) for name, weight in weights.items()}


def _add(sums, delta, base, text, unet):
    for name, weight in base.items():
        for number, (own, shape) in enumerate(_own_names(name, tuple(weight.shape))):
            entry = delta.entries.get(own)
            strength = text if is_of_text(name) else unet
            if entry is None or strength == 0:
                continue
            dense, hit = sums.setdefault(name, (torch.zeros(weight.shape), torch.zeros(weight.shape, dtype=torch.bool)))
            places = entry.indices.long() + number * torch.Size(shape).numel()
            change = entry.values.float() * strength
            dense.view(-1)[places] += change
            hit.view(-1)[places] |= change != 0


def _merge(weights, lora, text, unet):
    for name, weight in weights.items():
        if (stem := _lora_name(name)) is not None and f"{stem}.lora_up.weight" in lora:
            up, down = (lora[f"{stem}.lora_{side}.weight"].to(weight.dtype) for side in ("up", "down"))
            change = up @ down * 1.0 * (text if is_of_text(name) else unet)
            weights[name] = (weight.to(change.dtype) + change).to(weight.dtype)


def differing(found, wanted):
    """Names of weights that are not the same to the last bit, −0.0 and 0.0 told apart."""
    return [name for name, weight in wanted.items() if not torch.equal(_bits(found[name]), _bits(weight))]


def _bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)
