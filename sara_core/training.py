"""The training loop. It knows nothing of hosts, data or pictures: it is given losses and reports steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .errors import TrainingError
from .optimizer import check_all_reached
from .store import Store


@dataclass(frozen=True)
class TrainingSettings:
    """steps: optimizer steps; accumulation: micro-batches per step, their losses averaged; max_grad_norm: the
    gradient of Δ is scaled down to this 2-norm, 0 = never"""

    steps: int
    accumulation: int = 1
    max_grad_norm: float = 1.0


def train(
    store: Store,
    optimizer: torch.optim.Optimizer,
    micro_batch_loss: Callable[[], torch.Tensor],
    settings: TrainingSettings,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_micro_batch: Callable[[], None] = lambda: None,
    scaler: torch.amp.GradScaler | None = None,
) -> list[float]:
    """Train Δ of `store` and return the mean loss of every step.

    micro_batch_loss: computes the loss (scalar, with graph) of the next micro-batch
    on_step: called after each step with the number of steps done (from 1) and its loss
    on_micro_batch: called before each micro-batch; may raise to stop the run
    scaler: scales the loss for fp16 compute; a step whose scaled gradient overflows is skipped and the scale lowered

    Whatever is raised, here or in a callback, Δ and the live weights are those of the last complete step. A
    non-finite loss or gradient raises TrainingError, with Δ back at the last values known to give a finite loss.
    """
    scaler = scaler or torch.amp.GradScaler(store.values.device.type, enabled=False)
    losses = []
    last_good = store.values.detach().clone()
    for step in range(1, settings.steps + 1):
        optimizer.zero_grad(set_to_none=False)
        mean = 0.0
        for _ in range(settings.accumulation):
            on_micro_batch()
            loss = micro_batch_loss() / settings.accumulation
            mean += loss.item()
            if not math.isfinite(mean):
                _return_to(store, last_good)
                raise _diverged(step, "loss", mean)
            scaler.scale(loss).backward()
        if step == 1:
            check_all_reached(store)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_([store.values], settings.max_grad_norm or math.inf)
        last_good.copy_(store.values.detach())  # they gave a finite loss
        if not torch.isfinite(norm) and scaler.get_scale() <= 1.0:
            raise _diverged(step, "gradient", norm.item())
        scaler.step(optimizer)
        scaler.update()
        if not torch.isfinite(store.values).all():
            _return_to(store, last_good)
            raise _diverged(step, "change of the weights", math.inf)
        store.write()
        losses.append(mean)
        on_step(step, mean)
    return losses


@torch.no_grad()
def _return_to(store: Store, values: torch.Tensor) -> None:
    store.values.copy_(values)
    store.write()


def _diverged(step: int, what: str, value: float) -> TrainingError:
    return TrainingError(
        f"Training stopped at step {step}: the {what} became {value}. The last good values are kept. "
        "Lower the learning rate, or check the training images for damaged files."
    )
