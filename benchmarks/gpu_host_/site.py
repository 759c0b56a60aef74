"""One ComfyUI under test: started in one of its ways, asked for things with a limit, started again when it is lost."""

import hashlib
import io
import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devtools.comfyui.client import NodeProgress
from devtools.comfyui.install import Host, HostError
from devtools.comfyui.server import Server

TAIL = 60
# What the probe, which only a ComfyUI can import, answers at.
MEMORY_ADDRESS = "/gpu_host/memory"
PROBE = Path(__file__).with_name("probe.py")


class Site:
    """A server's folder and the server.

    base: made here; files: the folder that files.write has filled; arguments: of ComfyUI, how it is to treat memory
    start_seconds: how long it may take until it answers
    """

    def __init__(
        self, host: Host, base: Path, files: Path, device: str, arguments: tuple[str, ...], start_seconds: float
    ):
        self.base, self.files, self.device = base, files, device
        page = base / "page"
        page.mkdir(parents=True)
        (page / "index.html").write_text("<!doctype html>", encoding="utf-8")
        nodes = base / "custom_nodes"
        nodes.mkdir()
        shutil.copy(PROBE, nodes / "gpu_host_probe.py")
        options = ("--front-end-root", str(page), "--debug-hang", *arguments)
        paths = {kind: files / kind for kind in ("checkpoints", "sara", "loras")}
        self._new_server = lambda: Server(
            host, base, model_paths=paths, arguments=options, device=device, start_seconds=start_seconds
        )
        self.server: Server | None = None
        self.info: dict[str, dict] = {}
        self.logs: list[str] = []
        self.failed_starts = 0

    def ensure(self) -> float:
        """Have a server that answers; seconds that it took to start, 0 if it ran."""
        if self.server is not None and self.server.is_running:
            return 0.0
        self.stop()
        begin = time.monotonic()
        self.server = self._new_server()
        try:
            self.server.start()
        except HostError:
            self.failed_starts += 1
            self.stop()
            raise
        self.info = self.server.client.object_info()
        return time.monotonic() - begin

    def stop(self) -> None:
        """End the server, if one runs; its log is kept."""
        if self.server is None:
            return
        self.server.stop()
        self.logs.append(self.server.log())
        self.server = None

    def end_hung(self) -> None:
        """End a server that does not answer, so that it says in its log where each of its threads was."""
        with_stacks = getattr(signal, "SIGABRT", signal.SIGTERM)
        if self.server is not None and self.server.is_running:
            os.kill(self.server.pid, with_stacks)
            time.sleep(2)
        self.stop()

    def log(self) -> str:
        """All that the servers have printed so far."""
        return "\n".join([*self.logs, self.server.log() if self.server is not None else ""])

    def tail(self) -> str:
        return "\n".join(self.log().splitlines()[-TAIL:])

    def run(
        self, prompt: Mapping[str, dict], limit: float, on_progress: Callable[[NodeProgress], None] | None = None
    ) -> dict[str, dict]:
        """Outputs of the nodes by their names. Raises PromptError, PromptInterrupted or TimeoutError."""
        return self.server.client.run(self._complete(prompt), on_progress, limit)

    def _complete(self, prompt: Mapping[str, dict]) -> dict[str, dict]:
        """With the defaults of the widgets that a page would have filled in."""
        complete = {}
        for name, node in prompt.items():
            needed = self.info[node["class_type"]]["input"].get("required", {})
            defaults = {key: default_of(*described) for key, described in needed.items() if key not in node["inputs"]}
            complete[name] = {**node, "inputs": {**defaults, **node["inputs"]}}
        return complete

    def pixels(self, outputs: Mapping[str, dict], node: str = "picture") -> np.ndarray:
        (file,) = outputs[node]["images"]
        return np.asarray(Image.open(io.BytesIO(self.server.client.view(file))).convert("RGB"))

    def memory(self) -> dict[str, Any]:
        """Of the host's device, as the probe tells it; its peak counts from here on."""
        with urllib.request.urlopen(self.server.client.address + MEMORY_ADDRESS, timeout=30) as answer:
            return json.loads(answer.read())


def default_of(kind: Any, options: Mapping[str, Any] | None = None) -> Any:
    """What a page shows in an input that nobody has set."""
    options = options or {}
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, list) else options.get("options", [None])
    return choices[0]


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
