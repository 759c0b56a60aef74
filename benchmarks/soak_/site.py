"""Where it all happens: folders of its own, a small disk for what is saved, one ComfyUI, now and then a second."""

import contextlib
import itertools
import os
import random
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from devtools.comfyui.client import Client
from devtools.comfyui.install import Host
from devtools.comfyui.server import Server
from devtools.demo import STYLE_FOLDER

from .small_disk import mounted_on, taken_off
from .watched_model import NODE

PICTURES = "few"
# The demo's diffusion model without the text encoder that makes its file large: to bake into and to compare with.
SMALL = "small.safetensors"
_PREFIX = "model.diffusion_model."


class Site:
    """A base folder with one server, restarted after it was killed.

    checkpoint: the model that is trained and drawn with
    """

    def __init__(self, host: Host, checkpoint: Path, base: Path):
        self.host, self.checkpoint, self.base = host, checkpoint, base
        self.output, self.temporary = base / "output", base / "tmp"
        for folder in (self.output, self.temporary, base / "custom_nodes", base / "models" / "checkpoints"):
            folder.mkdir(parents=True)
        self.has_small_disk = mounted_on(self.output)
        (base / "custom_nodes" / "soak_probe.py").write_text(NODE, encoding="utf-8")
        _copy_pictures(base / "input" / PICTURES)
        save_file(_diffusion_model(checkpoint), base / "models" / "checkpoints" / SMALL)
        self.server = self._server(base)
        self.lives, self.info = 0, {}
        self._numbers = itertools.count(1)
        self._said_before, self._read = "", 0

    def start(self) -> None:
        """Start the server; its temporary files go into a folder of their own."""
        with _environment("TMPDIR", str(self.temporary)):
            self.server.start()
        self.lives += 1
        self.info = self.info or self.server.client.object_info()

    def close(self) -> None:
        """Stop the server, and let go of the small disk."""
        self.server.stop()
        if self.has_small_disk:
            taken_off(self.output)

    def kill(self) -> None:
        """Kill the server, and keep what it has said."""
        self.server.kill()
        self._said_before += self.server.log()[self._read :]
        self._read = 0

    def new_log(self) -> str:
        """What the server, and one that was killed since, has said since the last call."""
        log = self.server.log()
        said, self._said_before = self._said_before + log[self._read :], ""
        self._read = len(log)
        return said

    @contextlib.contextmanager
    def second_server(self):
        """Another ComfyUI that saves into the same folder, as long as the block lasts."""
        base = self.base / "second"
        if not base.exists():
            _copy_pictures(base / "input" / PICTURES)
        with _environment("TMPDIR", str(self.temporary)):
            server = self._server(base, "--output-directory", str(self.output)).start()
        try:
            yield server
        finally:
            server.stop()

    def new_client(self) -> Client:
        """Somebody else at the same server."""
        return Client(self.server.client.address)

    def next_number(self) -> int:
        """Another one each time."""
        return next(self._numbers)

    def models(self) -> list[Path]:
        """The model files that everybody takes from and nobody changes."""
        return [self.checkpoint, self.base / "models" / "checkpoints" / SMALL]

    def deltas(self) -> list[str]:
        """Names, as the loader has them, of the deltas that were saved with a name of this soak's own."""
        return self._names("sara", ("trained_", "merged_", "extracted_", "converted_"))

    def baked(self) -> list[str]:
        return self._names("checkpoints", ("baked_",))

    def snapshots(self) -> list[str]:
        return self._names("sara_snapshots", ("run_",))

    def _names(self, folder: str, beginnings: tuple[str, ...]) -> list[str]:
        found = (self.output / folder).glob("*.safetensors")
        return sorted(path.name for path in found if path.name.startswith(beginnings))

    def _server(self, base: Path, *arguments: str) -> Server:
        return Server(self.host, base, model_paths={"checkpoints": self.checkpoint.parent}, arguments=arguments)


def picked(choose: random.Random, names: list[str]) -> str:
    """One of them. Always one draw, so that what follows does not depend on how many there are."""
    return names[int(choose.random() * len(names))]


def _copy_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for picture in sorted(STYLE_FOLDER.glob("*.png"))[:4]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)


def _diffusion_model(checkpoint: Path) -> dict[str, torch.Tensor]:
    with safe_open(checkpoint, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(_PREFIX)}


@contextlib.contextmanager
def _environment(name: str, value: str):
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
