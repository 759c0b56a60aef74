"""The runs that the samples were taken from: what must be given again to go on with them."""

import torch
from torch import nn

from tests.samples.exact import exact_tensor, made_exact

# Of the library's: elements that are trained, steps before the state is saved, and after.
COUNT, STEPS_BEFORE, STEPS_AFTER = 500, 4, 3
OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.01}),
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
}  # fmt: skip
NODE_RUN = {"select_by": "count", "count": 2000, "steps": 6, "batch_size": 2, "low_rank_weight": 1e-3, "seed": 5}
# Name of the sample → inputs of SaRATrain and of SaRATrainOptions.
NODE_RUNS = {
    "node_adamw": ({"learning_rate": 2e-6, "adjust_at": "0.34"}, {"schedule": "cosine", "warmup_steps": 2}),
    "node_sgd": ({"learning_rate": 0.1, "adjust_at": ""}, {"optimizer": "SGD", "weight_decay": 0.01}),
}
COMMAND_RUN = (
    "--count", "2000", "--steps", "6", "--batch-size", "2", "--learning-rate", "1e-4", "--resolution", "32",
    "--adjust-at", "0.34", "--low-rank", "1e-3", "--seed", "5",
)  # fmt: skip
STOPPED_AFTER = 3


def small_net() -> nn.Module:
    """[n, 3, 6, 6] → [n, 4]; the samples of the library were made with it."""
    return made_exact(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.SiLU(), nn.Linear(16, 4)
    ))  # fmt: skip


def small_batches(first: int, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches number `first` to `last`, without it: pairs of input [5, 3, 6, 6] and target [5, 4]."""
    return [(exact_tensor(f"input {number}", (5, 3, 6, 6)) * 8, exact_tensor(f"target {number}", (5, 4)) * 2)
            for number in range(first, last)]  # fmt: skip


def latents_and_captions(count: int = 3) -> tuple[list[dict], list[list]]:
    """What SaRA Train is given for a model of SD1.5: latents [1, 4, 8, 8] and captions of 77 tokens."""
    latents = [{"samples": exact_tensor(f"latent {number}", (1, 4, 8, 8)) * 16} for number in range(count)]
    captions = [[[exact_tensor(f"caption {number}", (1, 77, 768)) * 256, {}]] for number in range(count)]
    return latents, captions


def train_small_net(model: nn.Module, optimizer, first: int, last: int) -> None:
    """Steps number `first` to `last`, without it."""
    for x, target in small_batches(first, last):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()
