"""Ways of training a model in plain PyTorch, each on its own ground: its defaults, AdamW, nothing hand-tuned.

Every function takes a frozen model and returns the optimizer, or None where nothing is trained. All use torch's fused
AdamW, as ours does by default.
"""

from collections.abc import Callable

import torch

LEARNING_RATE = 1e-4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ATTENTION_RANK, EVERYWHERE_RANK, SHIRA_RANK = 25, 4, 8


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)


def _adapter(model, config) -> torch.optim.Optimizer:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, model)
    return _adamw(model)


def _layers(model: torch.nn.Module, *types: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, types)]


def floor(model, elements):
    """Forward, and backward to the input: what any training of this model costs."""
    return None


def lora_attention(model, elements):
    """PEFT's LoRA on the attention projections."""
    from peft import LoraConfig

    return _adapter(model, LoraConfig(r=ATTENTION_RANK, lora_alpha=ATTENTION_RANK, target_modules=ATTENTION))


def lora_everywhere(model, elements):
    """PEFT's LoRA on every Linear and convolution: like for like with what SaRA trains."""
    from peft import LoraConfig

    names = _layers(model, torch.nn.Linear, torch.nn.Conv2d)
    return _adapter(model, LoraConfig(r=EVERYWHERE_RANK, lora_alpha=EVERYWHERE_RANK, target_modules=names))


def shira(model, elements):
    """PEFT's SHiRA, which knows Linear layers only."""
    from peft import ShiraConfig

    return _adapter(model, ShiraConfig(r=SHIRA_RANK, target_modules=_layers(model, torch.nn.Linear)))


def super_tuning(model, elements):
    """PEFT's Super-Tuning of the same number of elements, the smallest of each Linear layer."""
    from peft import SupertuningConfig

    names = _layers(model, torch.nn.Linear)
    size = sum(model.get_submodule(name).weight.numel() for name in names)
    config = SupertuningConfig(sparsity=1 - elements / size, select_top=False, target_modules=names)
    return _adapter(model, config)


def full(model, elements):
    """Every parameter."""
    model.requires_grad_(True)
    return _adamw(model)


def sara(model, elements):
    """Ours."""
    from sara_core import SaRA

    return SaRA(model, count=elements)


METHODS: dict[str, Callable[[torch.nn.Module, int], torch.optim.Optimizer | None]] = {
    "floor": floor,
    "LoRA attention": lora_attention,
    "LoRA everywhere": lora_everywhere,
    "SHiRA": shira,
    "Super-Tuning": super_tuning,
    "full": full,
    "SaRA": sara,
}


def trained_elements(optimizer: torch.optim.Optimizer | None) -> int:
    """How many numbers the optimizer changes."""
    groups = [] if optimizer is None else optimizer.param_groups
    return sum(parameter.numel() for group in groups for parameter in group["params"])
