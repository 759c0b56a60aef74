"""The subcommands of `python -m sara_core`: one module each, which only returns what is to be printed.

A module has HELP, one line; add_arguments(parser); and run(arguments) → str, which may raise SaRAError.
"""

from types import ModuleType

from . import convert

COMMANDS: dict[str, ModuleType] = {"convert": convert}
