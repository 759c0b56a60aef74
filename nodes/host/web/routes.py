"""Addresses at which ComfyUI's page asks this pack: JSON in, JSON out, errors as sentences, nothing but /sara/…

Who may ask at all is the host's to say; here stands only what it leaves open: a page of somebody else's must not be
able to post, and no question may be larger than it needs to be.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp.web
from server import PromptServer

from ....sara_core.errors import SaRAError
from ....sara_core.wording import Sentence
from .run_state import sentence

PREFIX = "/sara"
MAX_QUESTION = 1024 * 1024  # bytes
_FOREIGN = ("cross-site", "same-site")

Answer = Callable[[Mapping[str, Any]], Any]


def on_get(path: str, answer: Answer) -> None:
    """Answer GET /sara/<path> with what `answer` makes of the values in the address, as JSON; it runs in a thread.

    path: may have parts in braces, as aiohttp has them ("runs/{run}"); their values are among the address's
    A SaRAError becomes a 400 with {"error": what it says, "sentence": the same for the page's language}. Without a
    server, as in tests of single nodes, nothing happens.
    """
    _register("GET", path, lambda request: _in_thread(answer, {**request.query, **request.match_info}))


def on_post(path: str, answer: Answer) -> None:
    """The same for POST: `answer` is given the JSON object that was sent, with the values in the address over it.

    Refused with 403 when a page of another origin posts, with 415 when it is not JSON, with 413 when it is too large.
    """

    async def answered(request: aiohttp.web.Request) -> aiohttp.web.Response:
        if request.headers.get("Sec-Fetch-Site") in _FOREIGN:
            return _failed(403, Sentence("Only ComfyUI's own page may do this."))
        if request.content_type != "application/json":
            return _failed(415, "Send JSON.")
        content = await _at_most(request, MAX_QUESTION)
        if content is None:
            return _failed(413, Sentence("That is too much at once."))
        try:
            sent = json.loads(content)
        except (ValueError, RecursionError):
            return _failed(400, "That is no JSON.")
        if not isinstance(sent, dict):
            return _failed(400, "Send a JSON object.")
        return await _in_thread(answer, {**sent, **request.match_info})

    _register("POST", path, answered)


async def _at_most(request: aiohttp.web.Request, most: int) -> bytes | None:
    """What was sent; None if that is more, whatever the request says of its length."""
    content = bytearray()
    async for part in request.content.iter_any():
        content += part
        if len(content) > most:
            return None
    return bytes(content)


def _register(method: str, path: str, handler: Callable) -> None:
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.route(method, f"{PREFIX}/{path}")(handler)


async def _in_thread(answer: Answer, asked: Mapping[str, Any]) -> aiohttp.web.Response:
    try:
        result = await asyncio.to_thread(answer, asked)
    except SaRAError as error:
        return _failed(400, error.said)
    except Exception:
        logging.exception("SaRA: a question of the page had no answer")
        return _failed(500, Sentence("That went wrong; ComfyUI's console says how."))
    if isinstance(result, aiohttp.web.StreamResponse):
        return result
    return aiohttp.web.json_response(result, headers={"Cache-Control": "no-store"})


def _failed(status: int, said: str) -> aiohttp.web.Response:
    return aiohttp.web.json_response({"error": said, "sentence": sentence(said)}, status=status)
