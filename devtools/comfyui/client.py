"""What any client of ComfyUI's HTTP interface does: queue a prompt, follow it, fetch what it made."""

import asyncio
import contextlib
import json
import mimetypes
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class PromptError(Exception):
    """A prompt was refused or failed; the message is the node's own.

    kind: the name of what the node raised, with its module; empty if the prompt was refused
    """

    def __init__(self, message: str, kind: str = ""):
        super().__init__(message)
        self.kind = kind


class PromptInterrupted(PromptError):
    """A prompt was stopped by Cancel."""


class NodeProgress(NamedTuple):
    """How far the running node is: ``value`` of ``maximum`` of its own units; 0 of 0 before its first report."""

    node_id: str
    value: int
    maximum: int


class Client:
    """One client of the ComfyUI at ``address``, for example ``http://127.0.0.1:8188``."""

    def __init__(self, address: str):
        self.address = address
        self._id = str(uuid.uuid4())

    def system_stats(self) -> dict:
        """What the server says of itself; its ``["system"]["argv"]`` is the command line that started it."""
        return json.loads(self._get("/system_stats", timeout=5))

    def object_info(self, node_id: str | None = None) -> dict:
        """What the server says of its nodes, or of the one ``node_id``."""
        return json.loads(self._get("/object_info" + (f"/{urllib.parse.quote(node_id)}" if node_id else "")))

    def run(
        self, prompt: dict, on_progress: Callable[[NodeProgress], None] | None = None, limit: float = float("inf")
    ) -> dict[str, dict]:
        """Execute an API-format workflow and return each output node's ``ui`` data by node id.

        limit: seconds after which TimeoutError is raised; the prompt goes on
        Raises:
            PromptError: it was refused or a node failed. PromptInterrupted: it was cancelled.
        """
        if on_progress is None:
            return self.wait(self.queue(prompt), limit=limit)
        with _ProgressListener(self.address, self._id) as listener:
            prompt_id = self.queue(prompt)
            return self.wait(prompt_id, lambda: listener.latest and on_progress(listener.latest), limit)

    def queue(self, prompt: dict) -> str:
        """Queue an API-format workflow; return its prompt id. Raises PromptError when validation refuses it."""
        body = json.dumps({"prompt": prompt, "client_id": self._id}).encode()
        try:
            answer = self._post("/prompt", body, "application/json")
        except urllib.error.HTTPError as error:
            raise PromptError(_refusal(error.read())) from None
        return json.loads(answer)["prompt_id"]

    def wait(
        self, prompt_id: str, each_poll: Callable[[], None] = lambda: None, limit: float = float("inf")
    ) -> dict[str, dict]:
        """Wait until a queued prompt is done; returns and raises as ``run`` does."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            entry = json.loads(self._get(f"/history/{prompt_id}")).get(prompt_id)
            if entry is not None:
                _raise_failure(entry["status"])
                return entry["outputs"]
            each_poll()
            time.sleep(0.1)
        raise TimeoutError(f"The prompt was not done after {limit:.0f} s.")

    def interrupt(self) -> None:
        """Press Cancel."""
        self._post("/interrupt", b"{}", "application/json")

    def free(self) -> None:
        """Ask for the memory of models and of kept outputs back, as the page's button does."""
        self._post("/free", b'{"unload_models": true, "free_memory": true}', "application/json")

    def remaining(self) -> int:
        """How many prompts run or wait."""
        return json.loads(self._get("/prompt"))["exec_info"]["queue_remaining"]

    def upload_image(self, path: Path, subfolder: str = "") -> str:
        """Put an image into ComfyUI's input folder; return its name there."""
        boundary = uuid.uuid4().hex
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        image_header = f'Content-Disposition: form-data; name="image"; filename="{path.name}"\r\nContent-Type: {kind}'
        parts = [(image_header, path.read_bytes())]
        for name, value in (("subfolder", subfolder), ("overwrite", "true")):
            parts.append((f'Content-Disposition: form-data; name="{name}"', value.encode()))
        body = b"".join(f"--{boundary}\r\n{header}\r\n\r\n".encode() + content + b"\r\n" for header, content in parts)
        body += f"--{boundary}--\r\n".encode()
        return json.loads(self._post("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def view(self, file: dict) -> bytes:
        """The bytes of a file as the outputs name it: ``filename``, ``subfolder`` and ``type``."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self._get(f"/view?{query}")

    def _get(self, path: str, timeout: float = 60) -> bytes:
        with urllib.request.urlopen(self.address + path, timeout=timeout) as response:
            return response.read()

    def _post(self, path: str, body: bytes, content_type: str) -> bytes:
        request = urllib.request.Request(self.address + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()


class _ProgressListener:
    """Keeps the latest progress report of the websocket; a context manager.

    aiohttp comes with ComfyUI, whose interpreter runs whatever shows progress.
    """

    def __init__(self, address: str, client_id: str):
        self.latest: NodeProgress | None = None
        self._url = f"{address}/ws?clientId={client_id}"
        self._connected = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._listen(),), daemon=True)

    def __enter__(self) -> "_ProgressListener":
        self._thread.start()
        self._connected.wait(timeout=10)
        return self

    def __exit__(self, *exception) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        import aiohttp

        self._stop = asyncio.Event()
        # A server that is gone is told by the request for the prompt.
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with aiohttp.ClientSession() as session, session.ws_connect(self._url, max_msg_size=0) as socket:
                waited_for = [asyncio.ensure_future(what) for what in (self._read(socket), self._stop.wait())]
                await asyncio.wait(waited_for, return_when="FIRST_COMPLETED")
                for task in waited_for:
                    task.cancel()
        self._connected.set()

    async def _read(self, socket) -> None:
        self._connected.set()
        async for message in socket:
            if not isinstance(message.data, str):
                continue  # a preview picture
            event = json.loads(message.data)
            data = event.get("data", {})
            if event["type"] == "executing" and data.get("node") is not None:
                self.latest = NodeProgress(data["node"], 0, 0)
            elif event["type"] == "progress":
                self.latest = NodeProgress(data["node"], data["value"], data["max"])


def _raise_failure(status: dict) -> None:
    for kind, details in status["messages"]:
        if kind == "execution_error":
            message = f"{details['node_type']}: {details['exception_message'].strip()}"
            raise PromptError(message, details["exception_type"])
        if kind == "execution_interrupted":
            raise PromptInterrupted(f"{details['node_type']}: interrupted")


def _refusal(body: bytes) -> str:
    """The reasons in the answer to a refused prompt, one per line."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    lines = [answer["error"]["message"]]
    for node in answer.get("node_errors", {}).values():
        lines += [f"{node['class_type']}: {error['message']}: {error['details']}" for error in node["errors"]]
    return "\n".join(lines)
