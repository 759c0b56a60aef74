"""Whether a saved optimizer state fits an optimizer over one vector, found out from the optimizer itself.

Every optimizer of torch's interface may be used, each with a state of its own. What it must look like is learnt by
letting a second one of the same class and options take one step on a vector of zeros of the same length. Of one that
cannot be tried so, because it takes a closure or has another constructor, every tensor must be of the vector's length
or a single number.
"""

import inspect
import numbers
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import DeltaError
from ..files.saved_state import damaged, fields, number, plain_tensor, sequence, tensor, whole_number

# Kept in fp32, which counts no further.
MOST_STEPS = 1 << 24
# How the numbers are computed, not what they are: decided by the machine, so a state never changes them.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# The learning rate, and what a scheduler of learning rates keeps of its beginning.
RATES = ("lr", "initial_lr")
# Averages of squares in torch's own optimizers.
NEVER_NEGATIVE = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "variance", "square_avg", "acc_delta", "sum", "step_size",
)  # fmt: skip


def checked_optimizer_state(
    optimizer: torch.optim.Optimizer,
    state: Any,
    elements: int,
    most_steps: int = MOST_STEPS,
    same_options: bool = False,
) -> dict:
    """`state`, from `state_dict()` of such an optimizer, as `optimizer.load_state_dict` may be given it.

    optimizer: over one vector, fp32 [any length], whose own state is not looked at
    elements: length of the vector that the state is of
    most_steps: how many steps it can have taken
    same_options: whether betas, momentum and so on must be those of `optimizer`; the learning rate may always differ

    Raises DeltaError for anything that such an optimizer would not have saved; `optimizer` stays as it is.
    """
    fields(state, "the optimizer's state", ("state", "param_groups"))
    if hasattr(optimizer, "as_written_now"):
        state = optimizer.as_written_now(state, elements)
    (group,) = sequence(state["param_groups"], "the optimizer's list of parameter groups", 1)
    options = _checked_options(optimizer, group, same_options)
    of_vector = fields(state["state"], "the optimizer's state", ())
    if of_vector:
        ((parameter, kept),) = of_vector.items() if len(of_vector) == 1 else [(None, None)]
        if type(parameter) is not int or parameter != 0:
            raise damaged("the optimizer's state is of other parameters than the one trained vector")
        _check_moments(optimizer, kept, elements, most_steps)
    return {"state": dict(of_vector), "param_groups": [options]}


def _is_torchs_own(optimizer) -> bool:
    return type(optimizer).__module__.partition(".optim")[0] == "torch"


def _checked_options(optimizer, group, same: bool) -> dict:
    """The optimizer's own group, with the values of `group` for what a state decides, and what schedulers have added.

    An option that `group` lacks stays as the optimizer has it: it is of another version of torch.
    """
    own, group = optimizer.param_groups[0], fields(group, "the optimizer's parameter group", ("params",))
    (parameter,) = sequence(group["params"], "the optimizer's list of parameters", 1)
    whole_number(parameter, "the number of the optimizer's parameter", 0, 0)
    options = {**own, "params": [0]}
    for name in group.keys() - {"params", *IMPLEMENTATION}:
        value, what = group[name], _called(name)
        if name in RATES:
            options[name] = _rate(own["lr"], value, what)
        elif name in own:
            options[name] = _like(own[name], value, name, _is_torchs_own(optimizer) or same)
            if same and options[name] != own[name]:
                raise _another_setting(name, own[name])
        elif isinstance(value, numbers.Real):  # OneCycleLR's bounds, for example
            options[name] = value if isinstance(value, bool) else number(value, what)
    if _can_be_made(optimizer, own) and not _can_be_made(optimizer, options):
        raise damaged("the optimizer refuses its learning rate or other options")  # which the class itself checks
    return options


def _called(name) -> str:
    """What to call a part of the state in a message; a number as a name may have any number of digits."""
    if not isinstance(name, str):
        raise damaged("the optimizer's state has a part whose name is no text")
    return f"the optimizer's {name[:40]}"


def _like(own, value, name: str, same_switches: bool):
    """`value`, if it is of the kind of `own`: numbers for numbers, as many; and the same for what is no number."""
    if isinstance(own, torch.Tensor):
        return tensor(value, f"the optimizer's {name}", own.dtype, tuple(own.shape))
    if isinstance(own, (list, tuple)):
        value = sequence(value, f"the optimizer's {name}", len(own))
        parts = [_like(mine, part, name, same_switches) for mine, part in zip(own, value)]
        return tuple(parts) if isinstance(own, tuple) else parts
    if isinstance(own, numbers.Real) and not isinstance(own, bool):
        # Some have infinity for "never".
        return own if type(value) is type(own) and value == own else number(value, f"the optimizer's {name}")
    if type(own) is not type(value) or (own != value and (same_switches or not isinstance(own, bool))):
        raise _another_setting(name, own)
    return value


def _rate(own, value, what: str):
    """A learning rate, a number or a tensor of one, as the optimizer has its own."""
    if isinstance(value, torch.Tensor):
        if plain_tensor(value, what).numel() != 1 or not value.is_floating_point():
            raise damaged(f"{what} is no number")
        value = value.item()
    value = number(value, what, 0.0)
    return torch.full_like(own, value) if isinstance(own, torch.Tensor) else value


def _another_setting(name: str, own) -> DeltaError:
    return DeltaError(
        f"This state was saved by an optimizer with another {name} than {str(own)[:40]}: construct the optimizer with "
        "the same options."
    )


def _check_moments(optimizer, saved, elements: int, most_steps: int) -> None:
    saved = fields(saved, "the optimizer's state of the trained vector", ())
    if not saved:  # dropped after a step that gave no numbers
        return
    example = _after_one_step(optimizer, elements)
    if missing := [name for name in example if name not in saved]:
        raise damaged(f"the optimizer's state lacks {missing[0]}")
    is_torchs_own = _is_torchs_own(optimizer)
    for name, value in saved.items():
        what = _called(name)
        if name in example:
            _check_like(value, example[name], what, elements)
        elif example and is_torchs_own:
            raise damaged(f"{what} is nothing that it keeps")
        else:
            # Fused kernels go through everything but the step as far as the vector is long.
            _check_without_example(value, what, elements, name == "step" or "fused" not in optimizer.param_groups[0])
        if name == "step":
            _check_steps(value, what, most_steps)
        elif is_torchs_own and name in NEVER_NEGATIVE and isinstance(value, torch.Tensor) and bool((value < 0).any()):
            raise damaged(f"{what} holds values below 0")


def _check_steps(value, what: str, most_steps: int) -> None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    steps = number(value, what, 0, most_steps)
    if steps != int(steps):
        raise damaged(f"{what} is {steps:g}")


def _check_like(value, example, what: str, elements: int) -> None:
    """That a value is of the kind, dtype and shape of an example, in tables and lists too."""
    if type(example) is torch.Tensor:
        tensor(value, what, example.dtype, tuple(example.shape), infinities=True)
    elif isinstance(example, torch.Tensor):  # quantised moments, whose class knows what is in them
        if type(value) is not type(example) or (value.dtype, value.shape) != (example.dtype, example.shape):
            raise damaged(f"{what} is no {type(example).__name__} of the vector's length")
    elif isinstance(example, Mapping):
        for name, part in example.items():
            _check_like(fields(value, what, example)[name], part, f"{what} {name}", elements)
    elif isinstance(example, (bool, str)):
        if type(value) is not type(example):
            raise damaged(f"{what} is of another kind than the optimizer's")
    else:  # a number, a list that grows, or nothing yet
        _check_without_example(value, what, elements)


def _check_without_example(value, what: str, elements: int, single: bool = True) -> None:
    """That tensors are of the vector's length, or `single` numbers, and numbers finite, in tables and lists too."""
    if isinstance(value, torch.Tensor):
        one = single and plain_tensor(value, what).numel() == 1
        tensor(value, what, value.dtype if one else torch.float32, value.shape if one else (elements,), infinities=True)
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            _check_without_example(part, what, elements, single)
    elif not isinstance(value, (bool, str, type(None))):
        number(value, what)


def _after_one_step(optimizer, elements: int) -> dict:
    """What the optimizer saves of a vector of so many elements; nothing for one that takes no such step."""
    try:
        _step_of_another(optimizer, 1)
    except Exception:  # whatever somebody's own optimizer raises
        return {}
    return _step_of_another(optimizer, elements)  # here only memory can be what fails


def _step_of_another(optimizer, elements: int) -> dict:
    trial = _another(optimizer, elements, optimizer.param_groups[0])
    (vector,) = trial.param_groups[0]["params"]
    vector.grad = torch.zeros_like(vector)
    with torch.random.fork_rng([vector.device] if vector.is_cuda else []):  # some draw
        trial.step()
    return trial.state_dict()["state"].get(0, {})


def _can_be_made(optimizer, options: Mapping) -> bool:
    try:
        _another(optimizer, 1, options)
    except Exception:
        return False
    return True


def _another(optimizer, elements: int, options: Mapping) -> torch.optim.Optimizer:
    """One of the same class and options, over zeros on the same device, in fp32 whatever torch's default."""
    (vector,) = optimizer.param_groups[0]["params"]
    accepted = _accepted_options(type(optimizer))
    chosen = {name: value for name, value in options.items() if name in accepted and name != "params"}
    zeros = torch.zeros(elements, device=vector.device, dtype=torch.float32)
    return type(optimizer)([torch.nn.Parameter(zeros)], **chosen)


def _accepted_options(kind: type) -> set[str]:
    """Names of a constructor's arguments, those that it passes on to its parents among them."""
    names = set()
    for parent in kind.__mro__:
        if "__init__" in vars(parent):
            arguments = inspect.signature(parent.__init__).parameters.values()
            names |= {argument.name for argument in arguments}
            if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
                break
    return names
