"""Starts a real ComfyUI server that touches none of its user's folders, and stops it."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from .client import Client
from .install import Host, HostError, link_pack, make_base, start_command

START_TIMEOUT = 300.0


class Server:
    """A ComfyUI server whose folders (models, input, output, user, custom_nodes …) all lie in ``base``.

    This checkout's pack is linked into ``base/custom_nodes``; other packs of the host are not loaded. Use it as a
    context manager, or call ``start`` and ``stop``.

    Args:
        base: made if it does not exist; survives ``stop``.
        model_paths: further model folders by kind, for example ``{"checkpoints": folder}``.
        port: where to listen on 127.0.0.1; 0 takes a free one.
        arguments: further arguments for ComfyUI's main.py.
        is_linked: False loads what lies in ``base/custom_nodes``, and links nothing there.
        device: "cpu", or "cuda" for whatever ComfyUI chooses by itself.
        start_seconds: how long it may take until it answers.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        *,
        model_paths: Mapping[str, Path] | None = None,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        is_linked: bool = True,
        device: str = "cpu",
        start_seconds: float = START_TIMEOUT,
    ):
        self.base = Path(base)
        self.port = port or free_port()
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self._host = host
        self._model_paths = dict(model_paths or {})
        self._arguments = arguments
        self._is_linked = is_linked
        self._device, self._start_seconds = device, start_seconds
        self._process: subprocess.Popen | None = None

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def pid(self) -> int | None:
        """Of the running server's process; None without one."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log_file(self) -> Path:
        return self.base / "server.log"

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self) -> "Server":
        """Start the server and return once it answers.

        Raises:
            HostError: the port is taken, or the server ended or did not answer; the message ends with its log.
        """
        if not _is_free(self.port):
            raise HostError(f"Port {self.port} of 127.0.0.1 is in use: stop the program that listens there, try again.")
        make_base(self.base)
        if self._is_linked:
            link_pack(self.base / "custom_nodes")
        with open(self.log_file, "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self._host.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"},
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server; without one running, do nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a crash or a power cut would."""
        self._process.kill()
        self._process.wait()
        self._process = None

    def wait(self) -> None:
        """Return when the server ends by itself, or on Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            self._process.wait()

    def log(self) -> str:
        """All that the server has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def peak_memory(self) -> int | None:
        """Highest resident memory of the server process so far, in bytes; None where the system does not tell."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024 if "VmHWM" in fields else None

    def _command(self) -> list[str]:
        command = [*start_command(self._host, self.base), *(["--cpu"] if self._device == "cpu" else [])]
        command += ["--port", str(self.port), "--disable-auto-launch", "--disable-api-nodes"]
        if self._model_paths:
            config = self.base / "extra_model_paths.yaml"
            # JSON is YAML too, and quotes every path.
            paths = {kind: str(folder) for kind, folder in self._model_paths.items()}
            config.write_text(json.dumps({"devtools": paths}), encoding="utf-8")
            command += ["--extra-model-paths-config", str(config)]
        return [*command, *self._arguments]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        while not self._answers():
            if self._process.poll() is not None:
                raise HostError(f"ComfyUI ended while it started (status {self._process.returncode}):\n{self._tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"ComfyUI did not answer within {self._start_seconds:.0f} s:\n{self._tail()}")
            time.sleep(0.25)

    def _answers(self) -> bool:
        """Whether this very server answers: another one may have taken the free port that was found for it."""
        try:
            return str(self.base) in self.client.system_stats()["system"]["argv"]
        except (OSError, ValueError, LookupError):
            return False

    def _tail(self) -> str:
        return "\n".join(self.log().splitlines()[-40:])


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
