"""The subcommands of `python -m sara_core`: one module each, which only returns what is to be printed.

A module has HELP, one line; add_arguments(parser); and run(arguments) → str, which may be empty, or raise SaRAError.
"""

from types import ModuleType

from . import bake, convert, extract, inspect, merge, report, train

COMMANDS: dict[str, ModuleType] = {
    "inspect": inspect, "convert": convert, "merge": merge, "extract": extract, "bake": bake,
    "train": train, "report": report,
}  # fmt: skip
