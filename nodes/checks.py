"""What comes into a node by its inputs, looked at once: here, and not where it is used. The page, programs that queue
prompts and other nodes may all hand on anything."""

import functools
from collections.abc import Callable

from comfy_api.latest import io

from ..sara_core.errors import DeltaError, SaRAError
from ..sara_core.numbers import checked
from .host import folders

PREFIX = "filename_prefix"


def checked_inputs(execute: Callable) -> Callable:
    """For the `execute` of a node: called only with numbers, switches and texts that its inputs allow.

    Raises DeltaError, with the input's name, for others.
    """

    @functools.wraps(execute)
    def checked_first(cls, **given):
        schema = cls.define_schema()
        for item in schema.inputs:
            if item.id not in given:
                continue
            if schema.is_input_list and given[item.id]:
                # Of an input that is no list by itself the first value counts.
                first, *others = given[item.id]
                given[item.id] = [_checked(item, first), *others]
            elif not schema.is_input_list:
                given[item.id] = _checked(item, given[item.id])
        return execute(cls, **given)

    return checked_first


def refusal(node_class: type, **given) -> bool | str:
    """For the `validate_inputs` of a node, before anything of a prompt is run: True, or what is wrong with the inputs
    of these names. None are those that come from other nodes, and are not known yet."""
    inputs = {item.id: item for item in node_class.define_schema().inputs}
    try:
        for name, value in given.items():
            if value is None:
                continue
            _checked(inputs[name], value)
            if name == PREFIX:
                folders.check_prefix(value)
    except SaRAError as error:
        return str(error)
    return True


def _checked(item: io.Input, value):
    if isinstance(item, (io.Int.Input, io.Float.Input)):
        return checked(value, item.id, item.min, item.max, whole=isinstance(item, io.Int.Input))
    if isinstance(item, io.Boolean.Input) and not isinstance(value, bool):
        raise DeltaError(f"{item.id} is {value!r:.60}: it takes true or false.")
    if isinstance(item, io.String.Input) and not isinstance(value, str):
        raise DeltaError(f"{item.id} is {value!r:.60}: it takes text.")
    return value
