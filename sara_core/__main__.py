"""The command line of the library: python -m sara_core COMMAND … (--help says more)."""

import argparse
import io
import sys
from collections.abc import Sequence

from .commands import COMMANDS
from .errors import SaRAError
from .foreign_text import visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0, or 1 after an error that was said in words."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a title in another script must not end the command
            stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m sara_core", description="Work with SaRA sparse deltas.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP, description=command.__doc__))
    parsed = parser.parse_args(arguments)
    try:
        if text := COMMANDS[parsed.command].run(parsed):
            print(visible(text))
    except SaRAError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
