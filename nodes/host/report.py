"""What ComfyUI adds to a problem report, and the address at which its page gets one: GET /sara/report, as text."""

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp.web
import app.logger
import comfy.model_management
import comfyui_version
import folder_paths
from server import PromptServer

from ...sara_core.report.report import Section, report

ADDRESS = "/sara/report"
_OURS = "SaRA"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def register_report() -> None:
    """Give the page its address; without a server, as in tests of single nodes, there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    async def answer(_: aiohttp.web.Request) -> aiohttp.web.Response:
        sections = [_section(title, lines) for title, lines in _SECTIONS.items()]
        text = await asyncio.to_thread(report, sections)
        return aiohttp.web.Response(text=text, headers={"Cache-Control": "no-store"})

    server.routes.get(ADDRESS)(answer)


def _section(title: str, lines: Callable[[], Iterator[str]]) -> Section:
    try:
        return Section(title, list(lines()))
    except Exception as error:  # of the insides of another ComfyUI: the rest of the report is wanted all the more
        logging.warning(f"SaRA: a problem report says nothing of '{title}' ({type(error).__name__}: {error}).")
        return Section(title, [f"not known: {type(error).__name__}: {error}"])


def _host() -> Iterator[str]:
    yield f"version  {comfyui_version.__version__}"
    device = comfy.model_management.get_torch_device()
    yield f"device   {device}, memory mode {comfy.model_management.vram_state.name}"
    # Names only: values hold paths, addresses and keys.
    options = (argument.split("=")[0] for argument in sys.argv[1:] if argument.startswith("--"))
    yield f"options  {' '.join(options) or 'none'}"
    folders = map(Path, folder_paths.get_folder_paths("custom_nodes"))
    packs = {path.name for folder in folders for path in folder.glob("[!_.]*")}
    yield f"packs    {', '.join(sorted(packs))}"


def _last_prompt() -> Iterator[str]:
    """Each of our nodes in the last prompt that had one, with the values that were typed or chosen."""
    prompts = [_prompt(run) for run in _history() if any(map(_is_ours, _prompt(run).values()))]
    for node in filter(_is_ours, prompts[-1].values() if prompts else ()):
        values = {name: value for name, value in node["inputs"].items() if not isinstance(value, list)}
        yield f"{node['class_type']}: " + ", ".join(f"{name} {value!r}" for name, value in values.items())


def _last_error() -> Iterator[str]:
    """The last error of a prompt that had one of our nodes, with its traceback."""
    runs = [run for run in _history() if any(map(_is_ours, _prompt(run).values()))]
    errors = [
        content for run in runs for event, content in (run["status"] or {}).get("messages", ())
        if event == "execution_error"
    ]  # fmt: skip
    for error in errors[-1:]:
        yield f"{error['node_type']}: {error['exception_type']}: {error['exception_message']}"
        yield from error["traceback"]


def _log() -> Iterator[str]:
    """The lines of ComfyUI's log, of which it keeps the last few hundred, that name us."""
    text = _COLOURS.sub("", "".join(entry["m"] for entry in list(app.logger.get_logs() or ())))
    return (line for line in text.splitlines() if _OURS.lower() in line.lower())


_SECTIONS = {"ComfyUI": _host, "Settings of the last run": _last_prompt, "Last error": _last_error, "Log": _log}


def _history() -> list[dict]:
    return list(PromptServer.instance.prompt_queue.get_history().values())


def _prompt(run: dict) -> dict[str, dict]:
    """Node id → its class and inputs."""
    return run["prompt"][2]


def _is_ours(node: dict) -> bool:
    return node["class_type"].startswith(_OURS)
