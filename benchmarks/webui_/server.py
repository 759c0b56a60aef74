"""A real WebUI, in a data folder of its own, on the CPU: started, asked, stopped.

A prepared checkout and its interpreter are named by variables, A1111_DIR and A1111_PYTHON, FORGE_DIR and FORGE_PYTHON,
NEO_DIR and NEO_PYTHON, SDNEXT_DIR and SDNEXT_PYTHON; nothing is downloaded, and nothing of the checkout is written to.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.process import run_module
from devtools.comfyui.install import HostError, link_pack
from devtools.comfyui.server import free_port

START_SECONDS, ANSWER_SECONDS = 900.0, 900.0
_COMMON = (
    "--skip-prepare-environment", "--skip-python-version-check", "--skip-version-check", "--skip-torch-cuda-test",
    "--api", "--nowebui",
)  # fmt: skip
PICTURE = {"steps": 1, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler"}


class Kind(NamedTuple):
    """A WebUI. variable: that begins the names of its two; arguments: for the CPU; by_dtype: those for a dtype

    fp8, as_stored: options by which the UNet's weights are in fp8, and as they are in the file
    common: arguments by which it leaves out what is installed; configuration: what its config.json has at first
    has_pipelines: whether its checkpoints are folders of diffusers'; second_prompt: what it calls that of hires
    """

    name: str
    variable: str
    arguments: tuple[str, ...]
    by_dtype: dict[str, tuple[str, ...]]
    fp8: dict[str, Any]
    as_stored: dict[str, Any]
    common: tuple[str, ...] = _COMMON
    configuration: dict[str, Any] | None = None
    has_pipelines: bool = False
    second_prompt: str = "hr_prompt"

    @property
    def checkout(self) -> Path | None:
        """The folder that is named by the variable, if one is."""
        named = os.environ.get(f"{self.variable}_DIR")
        return Path(named).absolute() if named else None

    @property
    def python(self) -> str:
        """The interpreter that runs it."""
        return os.environ.get(f"{self.variable}_PYTHON", "python3")


_LOW_BITS = {"forge_unet_storage_dtype": "float8-e4m3fn"}, {"forge_unet_storage_dtype": "Automatic"}
A1111 = Kind(
    "AUTOMATIC1111", "A1111", ("--use-cpu", "all", "--do-not-download-clip", "--disable-nan-check"),
    {"float32": ("--no-half", "--precision", "full"), "float16": ("--precision", "half")},
    {"fp8_storage": "Enable"}, {"fp8_storage": "Disable"},
)  # fmt: skip
FORGE = Kind(
    "Forge", "FORGE", ("--always-cpu",),
    {"float32": ("--all-in-fp32",), "float16": ("--unet-in-fp16", "--vae-in-fp32")},
    *_LOW_BITS,
)  # fmt: skip
NEO = Kind(
    "Forge Neo", "NEO", ("--cpu",), {"float32": ("--fp32-unet",), "float16": ("--fp16-unet", "--fp32-vae")}, *_LOW_BITS
)
SDNEXT = Kind(
    "SD.Next", "SDNEXT", ("--use-cpu", "all"), {"float32": ("--no-half",)},
    {"layerwise_quantization": ["Model"]}, {"layerwise_quantization": []},
    common=("--skip-all", "--skip-git"),
    configuration={"sd_checkpoint_autoload": False, "offline_mode": True, "server_rate_limit": 1000},
    has_pipelines=True, second_prompt="refiner_prompt",
)  # fmt: skip
ONE_FILE = A1111, FORGE, NEO  # is a checkpoint
KINDS = *ONE_FILE, SDNEXT


class Refused(HostError):
    """What was asked for was refused. sentence: why"""

    def __init__(self, sentence: str):
        super().__init__(sentence)
        self.sentence = sentence


class WebUI:
    """As a context manager, started and stopped. data: an empty or prepared folder; dtype: of the UNet's weights"""

    def __init__(self, kind: Kind, data: Path, dtype: str):
        self.kind, self._data, self._dtype, self._port = kind, data, dtype, free_port()
        self._process: subprocess.Popen | None = None

    def folder(self, name: str) -> Path:
        """Where it has its files of one kind: Stable-diffusion, Lora, sara."""
        folder = self._data / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def __enter__(self) -> "WebUI":
        extensions = self._data / "extensions"
        probe = extensions / "probe" / "scripts"
        probe.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("probe.py"), probe)
        link_pack(extensions)
        if self.kind.configuration is not None:
            (self._data / "config.json").write_text(json.dumps(self.kind.configuration), encoding="utf-8")
        command = [
            self.kind.python, "launch.py", *self.kind.common, *self.kind.arguments, *self.kind.by_dtype[self._dtype],
            "--data-dir", str(self._data), "--server-name", "127.0.0.1", "--port", str(self._port),
        ]  # fmt: skip
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1",
            "SD_LOG": str(self._data / "sdnext.log"),  # SD.Next's own, which is in its checkout otherwise
        }  # fmt: skip
        with open(self._data / "log.txt", "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, cwd=self.kind.checkout, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def draw(self, prompt: str) -> dict:
        """What it answers for a small picture. Raises HostError if a line of ours is below it."""
        answer = self.post("/sdapi/v1/txt2img", {"prompt": prompt, **PICTURE})
        if lines := self.lines():
            raise HostError(f"{self.kind.name}: {lines}")
        return answer

    def lines(self) -> list[str]:
        """Our lines below the pictures since this was last asked; the WebUI's API leaves them out."""
        return [line for line in self.get("/probe/lines") if "SaRA" in line]

    def save_unet(self, path: Path) -> dict:
        """Write the UNet's weights by the names that deltas have; what ran."""
        about = self.get("/probe/unet", path=str(path))
        if self.kind.has_pipelines:
            run_module("benchmarks.webui_.pipeline", ["names", str(path)])
        return about

    def get(self, route: str, **values: str) -> Any:
        """What it answers as JSON."""
        return self._answer(f"{route}?{urllib.parse.urlencode(values)}", None)

    def post(self, route: str, values: dict) -> Any:
        """What it answers as JSON. Raises Refused for what it has a sentence against."""
        return self._answer(route, json.dumps(values).encode())

    def _answer(self, route: str, body: bytes | None) -> Any:
        address = f"http://127.0.0.1:{self._port}{route}"
        request = urllib.request.Request(address, body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code == 400:
                raise Refused(json.load(error)["error"]) from error
            raise HostError(f"{self.kind.name} answered {error.code} to {route}:\n{self._log()}") from error

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise HostError(f"{self.kind.name} did not start:\n{self._log()}")
            try:
                return self._answer("/sdapi/v1/options", None)
            except (OSError, HostError):  # SD.Next answers before it has the address
                time.sleep(1)
        raise HostError(f"{self.kind.name} did not answer:\n{self._log()}")

    def _log(self) -> str:
        return "\n".join((self._data / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
