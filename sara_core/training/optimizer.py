"""The one line: `optimizer = SaRA(model, threshold=2e-3)` in place of `torch.optim.AdamW(model.parameters())`."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..backward.attach import (
    attach_model, attached_for_gradients, attached_layers, check_attached, detach_model, plain_layers, unfreeze,
)  # fmt: skip
from ..backward.store import Store
from ..backward.streaming import move_all_but, move_back
from ..backward.support import Support
from ..backward.weight_gradient import check_route
from ..delta import SparseDelta
from ..errors import DeltaError, TrainingError
from ..files.saved_state import fields
from ..names.patterns import ALL_LAYERS
from ..numbers import checked
from ..selection.gradient import GradientScores
from ..selection.rules import SMALLEST, Chosen, Request, Rule
from ..selection.select import select
from ..selection.trainable import left_out, trainable_weights
from .adjustment import Adjustment, adjust
from .block_moments import over_any_length
from .optimizer_state import checked_optimizer_state

# The paper's equation 12 was fitted for thresholds of 2e-4 to 5e-3 on weights of Stable Diffusion.
PAPER_RATE, PAPER_DECAY = 1e-3, 350.0
# The largest threshold that the paper uses for a whole model.
PAPER_THETA = 2e-3
# Far above every rate and decay that trains: with more, each step would be skipped for giving no finite change.
LARGEST_RATE = 1e6
PARAMETER_NAME = "sara_values"


def learning_rate_for(theta: float | None) -> float:
    """The paper's rule (equation 12): lr = 1e-3 · exp(-350 θ), θ the largest magnitude trained; for a selection without
    a θ, which the paper has no rule for, as for θ = 2e-3: 5e-4. Raises TrainingError for a θ that is no number
    not below 0."""
    if theta is not None:
        theta = checked(theta, "theta", 0, error=TrainingError)
    return PAPER_RATE * math.exp(-PAPER_DECAY * (PAPER_THETA if theta is None else theta))


class SaRA(torch.optim.Optimizer):
    """Trains only the smallest weights of a model, as one sparse vector of changes.

    Constructing it freezes every parameter of `model`, attaches a sparse backward to its Linear and Conv layers and
    registers the vector of changes Δ (fp32, one element per trained weight element, starting at 0) as the model's
    only trainable parameter, hidden from its state_dict. The training loop stays as it is: backward, clipping,
    accumulation, GradScaler, LR schedulers, non-reentrant checkpointing and DistributedDataParallel (construct SaRA
    first) work on that one parameter. After each step the live weights are round(base + Δ).

    model: any torch.nn.Module on its final device, in fp32, bf16 or fp16
    threshold | count | density: how many elements (selection/select.py); exactly one
    rule, per_layer, seed: which elements: by default the smallest of the whole model; a name of selection.rules.RULES
        or a function of your own. A resumed run gives the same ones again.
    loss: for rule "gradient" and others that need one: computes the loss, a scalar with graph, whose gradient chooses;
        the same one each time (selection/gradient.py). In distributed training it must be the same in every process.
    include, exclude, preset: patterns over parameter names (names/patterns.py); by default all Linear and Conv weights
    lr: learning rate; by default the paper's rule for the selected θ
    optimizer: a torch.optim class for the vector; `options` are passed to it. Weight decay acts on Δ (it pulls the
        model towards its base) and is 0 by default.
    weight_gradient: "auto" takes the fastest way per layer: on the CPU by costs that were measured beforehand,
        elsewhere by measurement, where any other of weight_gradient.ROUTES makes runs repeat bit for bit on the same
        machine
    stream_to: the device to compute on, if the weights are to stay where they are and pass through it one layer at a
        time (backward/streaming.py); everything else of the model moves there. The weights are written by `detach`
        only.

    Raises TrainingError for a learning rate or another option that is no number to compute with, SelectionError, and
    UnsupportedModelError for what cannot be trained (quantised weights, compiled models)
    and for a `weight_gradient` that does not work on the model's device.

    >>> import torch
    >>> from sara_core import SaRA, SparseDelta
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    >>> x = torch.randn(64, 8)
    >>> wanted = x.sum(1, keepdim=True)
    >>> def loss():
    ...     return torch.nn.functional.mse_loss(model(x), wanted)
    >>> before = loss().item()

    >>> optimizer = SaRA(model, density=0.25, lr=0.05)  # in place of torch.optim.AdamW(model.parameters(), …)
    >>> for _ in range(50):
    ...     optimizer.zero_grad()
    ...     loss().backward()
    ...     optimizer.step()
    >>> loss().item() < before / 2
    True
    >>> optimizer.delta().save("style.safetensors")
    >>> optimizer.detach(restore=True)
    >>> loss().item() == before
    True

    >>> delta = SparseDelta.load("style.safetensors")
    >>> delta
    SparseDelta(36 changes in 2 weights, density 25.000%)
    >>> handle = delta.apply_(model, strength=0.8)
    >>> loss().item() < before / 2
    True
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        threshold: float | None = None,
        count: int | None = None,
        density: float | None = None,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        preset: str = ALL_LAYERS,
        rule: str | Rule | Callable[[Request], Chosen] = SMALLEST,
        per_layer: bool = False,
        seed: int = 0,
        loss: Callable[[], torch.Tensor] | None = None,
        lr: float | None = None,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        weight_gradient: str = "auto",
        stream_to: torch.device | str | None = None,
        **options: Any,
    ):
        _check_options({**options, "lr": lr})
        weights = trainable_weights(model, include, exclude, preset)
        tensors = {name: holder.weight for name, holder in weights.items()}
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        self._streams, self._moved = stream_to is not None, []
        if self._streams:
            device = torch.device(stream_to)
        check_route(weight_gradient, device)
        by_gradient = None
        if loss is not None:
            attached = functools.partial(
                attached_for_gradients, model, weights=weights, route=weight_gradient, streamed=self._streams
            )
            by_gradient = GradientScores(attached, loss, device).largest
        selection = select(
            tensors, threshold=threshold, count=count, density=density, rule=rule, per_layer=per_layer, seed=seed,
            by_gradient=by_gradient,
        )  # fmt: skip
        support = Support.from_indices(selection.indices, {name: tensor.shape for name, tensor in tensors.items()})
        self.selection, self.left_out = selection.without_indices(), left_out(model, weights)
        self.store = Store(support, device)
        self.model = model
        self.inner = make_inner(optimizer, self.store.values, self.selection.theta, lr, options)
        if self._streams:
            self._moved = move_all_but(model, plain_layers(model).values(), device)
        self._frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            attach_model(model, self.store, weights, weight_gradient, self._streams)
        except BaseException:  # above all, too little memory for Δ's positions
            detach_model(model)
            move_back(self._moved)
            raise
        self._attached = attached_layers(model)
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        model.register_parameter(PARAMETER_NAME, self.store.values)
        self._hooks = [
            model.register_state_dict_post_hook(_hide_from_state_dict),
            model.register_load_state_dict_post_hook(_not_missing),
        ]
        super().__init__(self.inner.param_groups, self.inner.defaults)
        # One set of groups and state, so that schedulers and scalers acting on this object act on the inner one.
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    @property
    def values(self) -> torch.nn.Parameter:
        """Δ: the one fp32 parameter, [number of trained elements]."""
        return self.store.values

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One step of the inner optimizer on Δ, then the live weights follow. Returns the closure's loss, if any.

        closure: recomputes the loss with its gradient; optimizers like LBFGS call it several times

        Raises TrainingError if the model was converted or a hook taken off one of its layers, or, on the first step, a
        trained weight got no gradient.
        """
        self.store.check_unconverted()
        check_attached(self._attached)
        if closure is None:
            check_all_reached(self.store)
            loss = self.inner.step()
        else:
            loss = self.inner.step(lambda: self._evaluate(closure))
        self.store.write()
        return loss

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Clear the gradient of Δ. By default its memory is kept, other than in torch's optimizers: it is there at the
        peak of every step anyway, and clearing it takes less time than fetching it anew."""
        super().zero_grad(set_to_none)

    def _evaluate(self, closure):
        self.store.write()
        with torch.enable_grad():
            loss = closure()
        check_all_reached(self.store)
        return loss

    # torch's optimizers copy and pickle only groups and state; this one is nothing without its store.
    def __getstate__(self):
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)

    def adjust(self, theta: float | None = None) -> Adjustment:
        """Progressive parameter adjustment: end the training of the elements that have reached θ; only those still
        below it go on, with their moments. Call it between steps; the paper does once, after half of them.

        theta: by default that of the selection

        Raises TrainingError where the selection has no θ.
        """
        theta = self.selection.theta if theta is None else theta
        if theta is None:
            raise TrainingError("This selection has no threshold to adjust by: give adjust() one.")
        return adjust(self.store, self.inner, checked(theta, "theta", above=0, error=TrainingError))

    def delta(self, metadata: dict[str, str] | None = None) -> SparseDelta:
        """What was trained so far, named as in `model.named_parameters()`."""
        return self.store.delta(metadata)

    def state_dict(self) -> dict:
        """The inner optimizer's state with Δ, the support and the fingerprint of the base under it."""
        return {**self.inner.state_dict(), "sara": self.store.state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue where `state_dict` was taken, bit for bit on the CPU of the same machine with the same torch and
        number of threads. The model must hold the same base weights.

        Raises DeltaError if it was taken over another base, or with other trained elements, or is damaged; nothing is
        changed then.
        """
        fields(state_dict, "it", ())
        if "sara" not in state_dict:
            raise DeltaError("This state was not saved by a SaRA optimizer: it has no 'sara' part.")
        active = self.store.check_state(state_dict["sara"])
        inner = checked_optimizer_state(self.inner, state_dict, active)
        self.store.load_state(state_dict["sara"])
        self.inner.load_state_dict(inner)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self.store.write(frozen=True)

    def detach(self, restore: bool = False) -> None:
        """Take the sparse training off the model again; the optimizer is of no use afterwards.

        restore: give the weights back every bit they had at construction; otherwise they stay as trained.
        """
        if restore:
            self.store.restore()
        detach_model(self.model)
        move_back(self._moved)
        if self._streams and not restore:
            named = zip(self.store.support, self.store.holders)
            self.delta().apply_({segment.name: holder.weight for segment, holder in named})
        for hook in self._hooks:
            hook.remove()
        del self.model._parameters[PARAMETER_NAME]
        unfreeze(self._frozen)


def _check_options(options: dict[str, Any]) -> None:
    """Raise TrainingError for a number that no optimizer can compute with; what each takes, its class knows."""
    for name, value in options.items():
        least, most = (0, LARGEST_RATE) if name in ("lr", "weight_decay") else (None, None)
        if isinstance(value, float) or (least is not None and value is not None):
            checked(value, name, least, most, error=TrainingError)


def make_inner(
    optimizer: type[torch.optim.Optimizer],
    values: torch.nn.Parameter,
    theta: float | None,
    lr: float | None,
    options: dict[str, Any],
) -> torch.optim.Optimizer:
    """An optimizer of class `optimizer` over Δ alone, with this project's defaults: the paper's learning rate, no
    weight decay, and the fused implementation where the class has one: it needs no temporary vectors and half the time
    or less, but rounds by the place of an element in the vector.

    theta: of the selection, which decides the rate where `lr` is None; options: for the class, before every default
    """
    optimizer = over_any_length(optimizer)
    accepted = inspect.signature(optimizer).parameters
    defaults = {"lr": learning_rate_for(theta), "weight_decay": 0.0, "fused": values.device.type in ("cpu", "cuda")}
    chosen = {name: value for name, value in defaults.items() if name in accepted}
    chosen.update(options)
    if lr is not None:
        chosen["lr"] = lr
    if chosen.get("foreach") or chosen.get("differentiable"):
        chosen.pop("fused", None)
    return optimizer([values], **chosen)


def check_all_reached(store: Store) -> None:
    """Raise TrainingError naming the trained weights that no backward has reached."""
    missing = store.unreached()
    if missing:
        names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise TrainingError(
            f"{len(missing)} of {len(store.support)} trained weights got no gradient: {names}. Their layer's forward "
            "is bypassed or unused in this model; leave them out with an exclude pattern."
        )


def _hide_from_state_dict(module, state_dict, prefix, local_metadata):
    state_dict.pop(prefix + PARAMETER_NAME, None)


def _not_missing(module, incompatible_keys):
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if key.rpartition(".")[2] != PARAMETER_NAME]
