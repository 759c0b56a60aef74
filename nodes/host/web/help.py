"""The nodes' help pages in the page's language, where it looks for them first: docs/<node>/<language>.md.

A page that somebody has translated is given as it is. Of the others the names and sentences of a node, which are
translated anyway, make the beginning, and the rest is in English. Without this ComfyUI's page finds the English one
itself, after a complaint in the console.
"""

import asyncio
import json
import re
from pathlib import Path

import aiohttp.web
from server import PromptServer

from ....sara_core.errors import SaRAError

_PACK = Path(__file__).parents[3]
_DOCS, _LOCALES = _PACK / "js" / "docs", _PACK / "locales"
_REPLACED = ("Inputs", "Output", "Outputs")


def register_help() -> None:
    """Give the page its address; without a server, as in tests of single nodes, there is no page.

    Nor is there one where the pack's folder has a brace in its name, which an address takes for a pattern.
    """
    server = getattr(PromptServer, "instance", None)
    if server is None or set("{}") & set(_PACK.name):
        return

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        try:
            text = await asyncio.to_thread(help_page, request.match_info["node"], request.match_info["language"])
        except SaRAError as error:
            raise aiohttp.web.HTTPNotFound(text=str(error)) from None
        return aiohttp.web.Response(text=text, content_type="text/markdown", charset="utf-8")

    # As ComfyUI gives the folder of the scripts an address; the patterns let no other file be asked for.
    server.routes.get(f"/extensions/{_PACK.name}/docs/{{node:[A-Za-z]+}}/{{language:[A-Za-z-]+}}.md")(answer)


def help_page(node: str, language: str) -> str:
    """Markdown. node: the class of one of our nodes; language: as ComfyUI calls it ("zh", "pt-BR")

    Raises:
        SaRAError: there is no such node.
    """
    written, english = _DOCS / node / f"{language}.md", _DOCS / f"{node}.md"
    if not english.is_file():
        raise SaRAError(f"There is no help page of a node {node}.")
    if written.is_file():
        return written.read_text(encoding="utf-8")
    words = _words(language)
    return english.read_text(encoding="utf-8") if words is None else _partly(english, words, node)


def _words(language: str) -> dict | None:
    """{"nodes": of the nodes, "help": of these pages}; None for a language that the nodes are not translated into."""
    files = {"nodes": _LOCALES / language / "nodeDefs.json", "help": _LOCALES / language / "help.json"}
    if not all(path.is_file() for path in files.values()):
        return None
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def _partly(english: Path, words: dict, node: str) -> str:
    ours, said = words["nodes"].get(node), words["help"]
    introduction, *sections = re.split(r"^## ", english.read_text(encoding="utf-8"), flags=re.M)
    if ours is None:
        return "## ".join([introduction, *sections])
    kept = [section for section in sections if section.partition("\n")[0] not in _REPLACED]
    parts = [
        f"# {ours['display_name']}", ours["description"],
        f"## {said['inputs']}", _listed(ours["inputs"]), f"## {said['outputs']}", _listed(ours["outputs"]),
        f"*{said['rest']}*", introduction.partition("\n")[2].strip(), *(f"## {section.strip()}" for section in kept),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _listed(entries: dict[str, dict]) -> str:
    """An item for each input or output that has something to say; an output has a number for a name."""
    lines = []
    for name, entry in entries.items():
        known_as = entry.get("name") or ("" if name.isdigit() else name)
        shown = f"**{known_as}**" if name.isdigit() or known_as == name else f"**{known_as}** (`{name}`)"
        if "tooltip" in entry:
            lines.append(f"- {shown}: {entry['tooltip']}" if known_as else f"- {entry['tooltip']}")
    return "\n".join(lines)
