"""Whether a saved optimizer state fits an optimizer over one vector, found out from the optimizer itself.

Every optimizer of torch's interface may be used, each with a state of its own. What it must look like is learnt by
letting a second one of the same class and options take one step on a vector of zeros of the same length.
"""

import inspect
from collections.abc import Mapping

import torch

from .errors import DeltaError
from .saved_state import damaged, fields, number, sequence, tensor, whole_number

# Kept in fp32, which counts no further.
MOST_STEPS = 1 << 24
# How the numbers are computed, not what they are: decided by the machine, so a state never changes them.
IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# The learning rate, and what a scheduler of learning rates keeps of its beginning.
RATES = ("lr", "initial_lr")
# Averages of squares, by the names that torch's and most other optimizers give them.
NEVER_NEGATIVE = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "variance", "square_avg", "acc_delta", "sum", "step_size",
)  # fmt: skip


def checked_optimizer_state(
    optimizer: torch.optim.Optimizer, state, elements: int, most_steps: int = MOST_STEPS, same_options: bool = False
) -> dict:
    """`state`, from `state_dict()` of such an optimizer, as `optimizer.load_state_dict` may be given it.

    optimizer: over one vector, fp32 [any length], whose own state is not looked at
    elements: length of the vector that the state is of
    most_steps: how many steps it can have taken
    same_options: whether betas, momentum and so on must be those of `optimizer`; the learning rate may always differ

    Raises DeltaError for anything that such an optimizer would not have saved; `optimizer` stays as it is.
    """
    fields(state, "the optimizer's state", ("state", "param_groups"))
    (group,) = sequence(state["param_groups"], "the optimizer's list of parameter groups", 1)
    options = _checked_options(optimizer, group, same_options)
    of_vector = fields(state["state"], "the optimizer's state", ())
    if of_vector:
        if list(of_vector) != [0]:
            raise damaged("the optimizer's state is of other parameters than the one trained vector")
        _check_moments(optimizer, of_vector[0], elements, most_steps)
    return {"state": dict(of_vector), "param_groups": [options]}


def _checked_options(optimizer, group, same: bool) -> dict:
    """The optimizer's own group, with the values of `group` for what a state decides. An option that only one of them
    has is of another version of torch, and stays as the optimizer has it."""
    own, group = optimizer.param_groups[0], fields(group, "the optimizer's parameter group", ("params",))
    (parameter,) = sequence(group["params"], "the optimizer's list of parameters", 1)
    whole_number(parameter, "the number of the optimizer's parameter", 0, 0)
    options = {**own, "params": [0]}
    for name in (own.keys() | set(RATES)) & group.keys() - {"params", *IMPLEMENTATION}:
        if name in RATES:
            options[name] = _rate(own["lr"], group[name], f"the optimizer's {name}")
        else:
            options[name] = _like(own[name], group[name], name)
            if same and options[name] != own[name]:
                raise _another_setting(name, options[name], own[name])
    try:  # the class itself refuses rates and betas that it cannot work with
        _another(optimizer, 1, options)
    except (ValueError, TypeError) as error:
        raise damaged(f"the optimizer refuses its options ({error})") from error
    return options


def _like(own, value, name: str):
    """`value`, if it is of the kind of `own`: numbers for numbers, as many, and the same for all that are switches."""
    if isinstance(own, (list, tuple)):
        value = sequence(value, f"the optimizer's {name}", len(own))
        parts = [_like(mine, part, name) for mine, part in zip(own, value)]
        return tuple(parts) if isinstance(own, tuple) else parts
    if isinstance(own, (int, float)) and not isinstance(own, bool):
        return number(value, f"the optimizer's {name}")
    if type(own) is not type(value) or own != value:
        raise _another_setting(name, value, own)
    return own


def _rate(own, value, what: str):
    if isinstance(own, torch.Tensor):  # a learning rate that may change inside a captured graph
        return tensor(value, what, own.dtype, tuple(own.shape))
    return number(value, what, 0.0)


def _another_setting(name: str, saved, own) -> DeltaError:
    return DeltaError(
        f"This state was saved by an optimizer with {name} = {str(saved)[:40]}, and here it is {own}: construct the "
        "optimizer with the same options."
    )


def _check_moments(optimizer, saved, elements: int, most_steps: int) -> None:
    saved = fields(saved, "the optimizer's state of the trained vector", ())
    if not saved:  # dropped after a step that gave no numbers
        return
    expected = _after_one_step(optimizer, elements)
    if set(saved) != set(expected):
        raise damaged(f"the optimizer keeps {', '.join(map(str, expected))}, and the state other things")
    for name, example in expected.items():
        _check_one(name, saved[name], example, most_steps)


def _check_one(name, value, example, most_steps: int) -> None:
    what = f"the optimizer's {name}"
    if type(example) is torch.Tensor:
        tensor(value, what, example.dtype, tuple(example.shape))
        if name == "step":
            steps = float(value)
            if not 0 <= steps <= most_steps or steps != int(steps):
                raise damaged(f"{what} is {steps:g}, and can only be 0 to {most_steps}")
        elif name in NEVER_NEGATIVE and bool((value < 0).any()):
            raise damaged(f"{what} holds values below 0")
    elif isinstance(example, torch.Tensor):  # quantised moments, whose class knows what is in them
        if type(value) is not type(example) or (value.dtype, value.shape) != (example.dtype, example.shape):
            raise damaged(f"{what} is no {type(example).__name__} of the vector's length")
    elif name == "step":
        whole_number(value, what, 0, most_steps)
    elif isinstance(example, (int, float)) and not isinstance(example, bool):
        number(value, what)
    elif type(value) is not type(example) or not isinstance(value, (bool, str, type(None))) or value != example:
        raise damaged(f"{what} is not what the optimizer keeps there")


def _after_one_step(optimizer, elements: int) -> dict:
    """What the optimizer keeps of a vector of so many elements."""
    try:
        _step_of_another(optimizer, 1)
    except Exception as error:  # whatever somebody's own optimizer raises
        raise DeltaError(
            f"A training with {type(optimizer).__name__} cannot be continued: its state cannot be checked, because "
            f"the optimizer takes no step by itself ({error}). Start anew, or train with AdamW."
        ) from error
    return _step_of_another(optimizer, elements)  # here only memory can be what fails


def _step_of_another(optimizer, elements: int) -> dict:
    trial = _another(optimizer, elements, optimizer.param_groups[0])
    (vector,) = trial.param_groups[0]["params"]
    vector.grad = torch.zeros_like(vector)
    trial.step()
    return dict(trial.state[vector])


def _another(optimizer, elements: int, options: Mapping) -> torch.optim.Optimizer:
    """One of the same class and options, over zeros of the same dtype on the same device."""
    (vector,) = optimizer.param_groups[0]["params"]
    accepted = inspect.signature(type(optimizer)).parameters
    chosen = {name: value for name, value in options.items() if name in accepted and name != "params"}
    return type(optimizer)([torch.nn.Parameter(vector.new_zeros(elements))], **chosen)
