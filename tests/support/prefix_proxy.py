"""A reverse proxy that serves a ComfyUI under a path, as people put theirs behind nginx or Caddy."""

import asyncio
import threading

import aiohttp
from aiohttp import web

from devtools.comfyui.server import free_port

# What belongs to one connection, and is not passed on.
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length"}


class PrefixProxy:
    """Serves what lies at `target` under `address`, which ends with `prefix`; everything else is not found.

    target: such as "http://127.0.0.1:8188"
    Use it as a context manager.
    """

    def __init__(self, target: str, prefix: str = "/behind/comfy"):
        self._target, self._prefix, self._port = target, prefix, free_port()
        self.address = f"http://127.0.0.1:{self._port}{prefix}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "PrefixProxy":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *exception) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        application = web.Application(client_max_size=100 * 1024 * 1024)
        application.router.add_route("GET", self._prefix, self._add_slash)
        application.router.add_route("*", self._prefix + "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(application, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _add_slash(self, request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": f"{self._prefix}/"})

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        url = self._target + request.raw_path.removeprefix(self._prefix)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._bridge(request, url)
        headers = _passed_on(request.headers)
        async with self._session.request(
            request.method, url, headers=headers, data=await request.read(), allow_redirects=False
        ) as answer:
            return web.Response(body=await answer.read(), status=answer.status, headers=_passed_on(answer.headers))

    async def _bridge(self, request: web.Request, url: str) -> web.WebSocketResponse:
        page = web.WebSocketResponse(max_msg_size=0)
        await page.prepare(request)
        async with self._session.ws_connect(url, max_msg_size=0) as server:
            await asyncio.wait(
                [asyncio.ensure_future(_forward(*pair)) for pair in ((page, server), (server, page))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        return page


async def _forward(origin, target) -> None:
    async for message in origin:
        if message.type == aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)


def _passed_on(headers) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _OF_THE_CONNECTION]
