"""What the HTTP interface answers, of a WebUI that was started with --api: /sara/v1/….

GET status, deltas, choices; POST train, stop, finish, save, sample. In and out is JSON; files are called by name.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from sara_core.errors import SaRAError, TrainingError

from .. import hosts
from ..console import log
from ..tab.files import rows
from ..training import hosts as training
from .guard import Refusal, refusal

PREFIX = "/sara/v1/"
MOST_BYTES = 1 << 20

Answer = Callable[[Mapping[str, Any]], Any]


def add_routes(app: Any, credentials: Mapping[str, str]) -> None:
    """Give a FastAPI or Starlette application the addresses. credentials: user → password, empty where there are none
    """
    from starlette.responses import JSONResponse  # the host's; nobody else needs it

    def add(method: str, path: str, answer: Answer) -> None:
        async def endpoint(request):
            status, content, headers = await answered(request, method, answer, credentials)
            return JSONResponse(content, status, headers)

        app.add_route(f"{PREFIX}{path}", endpoint, methods=[method])

    for method, path, answer in ROUTES:
        add(method, path, answer)


async def answered(
    request: Any, method: str, answer: Answer, credentials: Mapping[str, str]
) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of the answer to one request, a Starlette one."""
    client = request.client.host if request.client else None
    refused = refusal(method, request.headers, client, credentials)
    if refused is None and method == "POST":
        given = await _body(request)
        refused = given if isinstance(given, Refusal) else None
    else:
        given = {}
    if refused is not None:
        headers = {"WWW-Authenticate": "Basic"} if refused.status == 401 else {}
        return refused.status, {"error": refused.sentence}, headers
    try:
        return 200, await asyncio.to_thread(answer, given), {}
    except SaRAError as error:
        return 400, {"error": str(error)}, {}
    except Exception:
        log.exception("SaRA: a request could not be answered.")
        return 500, {"error": "That went wrong; the console says how."}, {}


async def _body(request: Any) -> dict[str, Any] | Refusal:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            return Refusal(413, "That is more than this interface reads.")
    try:
        given = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError):
        return Refusal(400, "That is no JSON.")
    return given if isinstance(given, dict) else Refusal(400, 'Send an object: {"name": …}.')


def _train(given: Mapping[str, Any]) -> dict:
    return training.runner().start(given).as_json()


def _status(given: Mapping[str, Any]) -> dict:
    if training.refusal() is not None or training.runner().last is None:
        return {"phase": None, "message": training.refusal() or training.NOTHING}
    return training.runner().last.as_json()


def _asked(wanted: str) -> Answer:
    def answer(given: Mapping[str, Any]) -> dict:
        if given:
            raise TrainingError(f"{wanted} takes no settings: send {{}}.")
        return training.runner().ask(wanted).as_json()

    return answer


def _deltas(given: Mapping[str, Any]) -> dict:
    host = hosts.current()
    return {"deltas": rows(host.shelf.deltas() if host is not None else {})}


def _choices(given: Mapping[str, Any]) -> dict:
    """What may be sent to train: settings with their defaults and ranges, folders of pictures, snapshots."""
    host = training.runner().host
    from ..training.places import picture_folders, snapshot_names
    from ..training.settings import ALL

    settings = {
        name: {
            "default": setting.default, "least": setting.least, "most": setting.most, "help": setting.help,
            "choices": list(setting.choices),
        }
        for name, setting in ALL.items()
    }  # fmt: skip
    return {"settings": settings, "folders": picture_folders(host), "snapshots": snapshot_names(host)}


ROUTES: list[tuple[str, str, Answer]] = [
    ("POST", "train", _train),
    ("GET", "status", _status),
    *(("POST", wanted, _asked(wanted)) for wanted in ("stop", "finish", "save", "sample")),
    ("GET", "deltas", _deltas),
    ("GET", "choices", _choices),
]
