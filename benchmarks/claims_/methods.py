"""The methods that are compared: each makes a frozen UNet trainable in about the same number of values.

    method(model, budget) → Trainable

LT-SFT (https://arxiv.org/abs/2110.07560) is two runs: full fine-tuning, and then, from the base again, the elements
that it has changed most, which is `sara` with a rule for those changes (training.py, choices.py).

What a method leaves of its budget because its ranks are whole numbers is in the table. Where the paper says how a
method is set up, it is set up so; LoRA, which the paper puts on the attention, is tried on every layer as well, where
ours is.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

# The weight that AdaptFormer's branch has (https://arxiv.org/abs/2205.13535, section 3.2).
ADAPTFORMER_SCALE = 0.1


class Trainable(NamedTuple):
    """parameters: what an optimizer changes
    before_step: (step, steps, optimizer), called with the gradients of a step that is to be taken, counted from 0
    after_step: brings the model up to date with the parameters
    finish: called once, after the last step
    """

    parameters: list[torch.nn.Parameter]
    before_step: Callable[[int, int, torch.optim.Optimizer], None] = lambda step, steps, optimizer: None
    after_step: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters)


def _trained(model: torch.nn.Module) -> Trainable:
    return Trainable([parameter for parameter in model.parameters() if parameter.requires_grad])


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every Linear and convolution by its name."""
    kinds = torch.nn.Linear, torch.nn.Conv2d
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def attention(model: torch.nn.Module) -> list[str]:
    """Names of the projections of the attention."""
    return [name for name in layers(model) if "attn" in name and ".to_" in name]


def feed_forwards(model: torch.nn.Module) -> list[str]:
    """Names of the transformers' feed-forward parts."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "ff"]


def _per_rank(module: torch.nn.Module) -> int:
    """How many values a LoRA of rank 1 has on a layer."""
    if isinstance(module, torch.nn.Conv2d):
        return module.weight[0].numel() + module.out_channels
    return module.in_features + module.out_features


def _ranks(model: torch.nn.Module, names: Iterable[str], budget: int) -> dict[str, int]:
    """One rank for all layers, and one more for as many as the budget allows."""
    found = layers(model)
    costs = {name: _per_rank(found[name]) for name in names}
    rank = max(budget // sum(costs.values()), 1)
    left = budget - rank * sum(costs.values())
    ranks = {}
    for name, cost in costs.items():
        one_more = cost <= left
        left -= cost * one_more
        ranks[name] = rank + one_more
    return ranks


def lora_on(model: torch.nn.Module, names: list[str], budget: int, **options) -> Trainable:
    """PEFT's LoRA on the layers of these names; options are LoraConfig's."""
    from peft import LoraConfig, inject_adapter_in_model

    ranks = _ranks(model, names, budget)
    smallest = min(ranks.values())
    config = LoraConfig(
        r=smallest, lora_alpha=smallest, target_modules=names, rank_pattern=ranks, alpha_pattern=ranks, **options
    )
    inject_adapter_in_model(config, model)
    return _trained(model)


def full(model: torch.nn.Module, budget: int) -> Trainable:
    """Every parameter; the budget is not its own."""
    model.requires_grad_(True)
    return _trained(model)


def lora(model: torch.nn.Module, budget: int) -> Trainable:
    """PEFT's LoRA on the attention, as in the paper."""
    return lora_on(model, attention(model), budget)


def lora_everywhere(model: torch.nn.Module, budget: int) -> Trainable:
    """PEFT's LoRA on every Linear and convolution."""
    return lora_on(model, list(layers(model)), budget)


def dora(model: torch.nn.Module, budget: int) -> Trainable:
    """PEFT's DoRA on the attention; its magnitudes are a few values more."""
    return lora_on(model, attention(model), budget, use_dora=True)


class _Beside(torch.nn.Module):
    """AdaptFormer: FFN(LN x) + 0.1 · W_up ReLU(W_down LN x); the block adds x."""

    def __init__(self, feed_forward: torch.nn.Module, width: int, inner: int):
        super().__init__()
        self.feed_forward = feed_forward
        self.down, self.up = torch.nn.Linear(width, inner), torch.nn.Linear(inner, width)
        torch.nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            torch.nn.init.zeros_(zero)

    def forward(self, x):
        return self.feed_forward(x) + ADAPTFORMER_SCALE * self.up(F.relu(self.down(x)))


def adaptformer(model: torch.nn.Module, budget: int) -> Trainable:
    """A bottleneck beside each feed-forward part."""
    names = feed_forwards(model)
    found = layers(model)
    widths = {name: next(m.in_features for n, m in found.items() if n.startswith(f"{name}.")) for name in names}
    inner = max(int((budget - sum(widths.values())) / sum(2 * width + 1 for width in widths.values())), 1)
    for name in names:
        holder, _, attribute = name.rpartition(".")
        parent = model.get_submodule(holder)
        beside = getattr(parent, attribute)
        device = next(beside.parameters()).device
        setattr(parent, attribute, _Beside(beside, widths[name], inner).to(device))
    return _trained(model)


def shira(model: torch.nn.Module, budget: int) -> Trainable:
    """PEFT's SHiRA, which knows Linear layers only, with random positions."""
    from peft import ShiraConfig, inject_adapter_in_model

    linear = {name: module for name, module in layers(model).items() if isinstance(module, torch.nn.Linear)}
    rank = max(round(budget / sum(_per_rank(module) for module in linear.values())), 1)
    inject_adapter_in_model(ShiraConfig(r=rank, target_modules=list(linear), random_seed=0), model)
    return _trained(model)


def super_tuning(model: torch.nn.Module, budget: int) -> Trainable:
    """PEFT's Super-Tuning on the smallest elements of each Linear layer."""
    from peft import SupertuningConfig, inject_adapter_in_model

    linear = {name: module for name, module in layers(model).items() if isinstance(module, torch.nn.Linear)}
    size = sum(module.weight.numel() for module in linear.values())
    config = SupertuningConfig(sparsity=1 - budget / size, select_top=False, target_modules=list(linear))
    inject_adapter_in_model(config, model)
    return _trained(model)


def sara(
    model: torch.nn.Module, budget: int, low_rank_weight: float = 0.0, adjust_at: tuple[float, ...] = (0.5,),
    decay: float = 0.0, average: float = 0.0, scaled: bool = False, **options,
) -> Trainable:  # fmt: skip
    """Ours: the smallest of all weights, by default as SaRA Train has it.

    low_rank_weight: λ of the low-rank loss; adjust_at: parts of the run after which the adjustment takes place
    decay: AdamW's decay of Δ; average: decay of a moving average of Δ, which is what the run ends with
    scaled: whether a step is longer where a layer's weights are larger, by their root mean square beside the mean one
    options: of sara_core.SaRA, as a rule and a seed
    Raises ValueError for `average` or `scaled` with an adjustment, after which the elements are others.
    """
    from sara_core import SaRA
    from sara_core.training.adjustment import adjust
    from sara_core.training.low_rank import LowRankLoss

    if adjust_at and (average or scaled):
        raise ValueError("An average and scaled steps are for runs without an adjustment.")
    size = sum(module.weight.numel() for module in layers(model).values())
    amount = {"density": budget / size} if options.get("per_layer") else {"count": budget}
    # Elsewhere the engine would choose the fastest of several ways by a measurement of its own, which says little while
    # other processes share the device, and other bits in every process.
    on_cpu = next(model.parameters()).device.type == "cpu"
    engine = SaRA(model, **amount, **options, weight_gradient="auto" if on_cpu else "dense")
    store, values = engine.store, engine.values
    low_rank = LowRankLoss(store, low_rank_weight, seed=0) if low_rank_weight else None
    scale = _sizes(engine) if scaled else None
    before, mean, taken = torch.zeros_like(values), torch.zeros_like(values), 0

    def before_step(step: int, steps: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = decay
        if low_rank is not None:
            low_rank.add_gradient()
        if step in {round(part * steps) for part in adjust_at}:
            adjust(store, optimizer, engine.selection.theta)
        if scale is not None:
            before.copy_(values.detach())

    @torch.no_grad()
    def after_step() -> None:
        nonlocal taken
        if scale is not None:
            values.copy_(before + scale * (values - before))
        store.write()
        taken += 1
        if average:
            mean.lerp_(values, 1 - min(average, taken / (taken + 9)))

    @torch.no_grad()
    def finish() -> None:
        if average:
            values.copy_(mean)
            store.write()

    return Trainable([values], before_step, after_step, finish)


def _sizes(engine) -> torch.Tensor:
    """Of each trained element the root mean square of its layer's weights beside the mean of all of them, fp32."""
    weights = dict(engine.model.named_parameters())
    entries = engine.delta().entries
    sizes = {name: weights[name].detach().float().square().mean().sqrt() for name in entries}
    flat = torch.cat([sizes[name].expand(len(entry.indices)) for name, entry in entries.items()])
    return flat / flat.mean()


METHODS: dict[str, Callable[[torch.nn.Module, int], Trainable]] = {
    "full": full,
    "LoRA": lora,
    "LoRA everywhere": lora_everywhere,
    "AdaptFormer": adaptformer,
    "SaRA": sara,
    "SHiRA": shira,
    "Super-Tuning": super_tuning,
    "DoRA": dora,
}
