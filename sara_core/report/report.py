"""A problem report: a text for an issue, with what helps to find the cause and nothing that says who somebody is."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..delta.delta import SparseDelta
from ..delta.describe import describe
from ..errors import SaRAError
from ..foreign_text import SENTENCES, visible
from .machine import machine, versions
from .privacy import Privacy, of_this_machine

_MOST_LINES = 100

_BEGINNING = """\
## SaRA: problem report

<!-- What did you do, what did you expect, and what came instead? Write it here, with the error's whole text.
Names of user, computer and home folder have been taken out below; look once over it all the same. -->
"""


class Section(NamedTuple):
    """A part of a report.

    title: ours, printed as it is
    lines: anybody's words: names are taken out of them, and they cannot be taken for Markdown; of more than 100 only
        the last are kept, and of each the first 1000 characters
    """

    title: str
    lines: Sequence[str]


def report(extra: Iterable[Section] = (), delta: Path | None = None, privacy: Privacy | None = None) -> str:
    """The report as Markdown, about this process's machine and packages.

    extra: what a host knows beside: its own version, log and last error
    delta: a delta's file, whose settings are told; one that cannot be read is told with the error
    privacy: what to take out; by default the names of this machine
    """
    privacy = privacy or of_this_machine()
    sections = [Section("Versions", _table(versions())), Section("Machine", _table(machine()))]
    if delta is not None:
        sections.append(Section("Delta", _delta_lines(delta)))
    return "\n".join([_BEGINNING, *(_markdown(section, privacy) for section in [*sections, *extra] if section.lines)])


def _delta_lines(path: Path) -> list[str]:
    try:
        delta = SparseDelta.load(path)
        facts = replace(describe(delta), blocks={})
        return [f"{path.name}, {path.stat().st_size:,} bytes", *facts.text().splitlines()]
    except (SaRAError, OSError) as error:
        return [f"{path.name} cannot be read: {error}"]


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows))
    return [f"{name:{width}}  {text}" for name, text in rows.items()]


def _markdown(section: Section, privacy: Privacy) -> str:
    # A line break within a line of the caller's would escape the limit of lines.
    lines = [line for text in section.lines for line in text.splitlines()]
    shown = [visible(privacy(line).expandtabs())[:SENTENCES] for line in lines[-_MOST_LINES:]]
    if len(lines) > len(shown):
        shown.insert(0, f"({len(lines) - len(shown)} lines before these)")
    longest = max((len(run) for line in shown for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"### {section.title}", f"{fence}text", *shown, fence, ""])
