"""The folder of a kit while it is filled, with what every kit has: the checkout's own code, and its script."""

import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

from ..comfyui.install import ROOT
from ..packer import tracked_files
from ..prepared import HostError
from ..progress import Progress

# What travels to a borrowed machine is often limited to little more.
MOST_BYTES = 60 * 2**20
SCRIPTS = Path(__file__).with_name("scripts")
# Nobody measures with pictures of the documentation; weights are packed apart (weights.py).
LEFT_OUT = (".safetensors", ".png", ".jpg", ".webp", ".gif")


class Kit:
    """folder: made here, for what is in it already must not be mistaken for a part of the kit.

    Raises:
        HostError: the folder is there and not empty.
    """

    def __init__(self, folder: Path, progress: Progress):
        self.folder, self.progress = folder, progress
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise HostError(f"{folder} is not empty: name a new folder.")
        folder.mkdir(parents=True, exist_ok=True)

    def add_archive(self, name: str, root: Path, files: Iterable[str]) -> None:
        """Pack files of a folder; run.sh unpacks them into tree/<name>."""
        self.progress.say(f"packing {name}")
        with tarfile.open(self.folder / f"{name}.tar.xz", "w:xz") as tar:
            for file in sorted(files):
                tar.add(root / file, file, recursive=False, filter=_of_nobody)

    def add_checkout(self, *wanted: str) -> None:
        """This checkout's tracked files in the folders `wanted`, or of these names; of pictures and weights none."""
        self.add_archive("checkout", ROOT, checkout_files(*wanted))
        described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        revision = subprocess.run(described, check=True, capture_output=True, text=True).stdout
        (self.folder / "revision").write_text(revision, encoding="utf-8")

    def add_script(self, name: str, needs: Iterable[str]) -> None:
        """scripts/<name>.sh as run.sh. needs: modules that the machine must have itself, told there if one is not."""
        shutil.copy(SCRIPTS / f"{name}.sh", self.folder / "run.sh")
        shutil.copy(SCRIPTS / "begin.sh", self.folder)
        (self.folder / "needs").write_text(" ".join(needs) + "\n", encoding="utf-8")

    def finish(self) -> int:
        """The bytes of all that is in the kit.

        Raises:
            HostError: it is too large.
        """
        size = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if size > MOST_BYTES:
            raise HostError(f"The kit has {size / 2**20:.1f} MiB, more than {MOST_BYTES / 2**20:.0f}.")
        return size


def checkout_files(*wanted: str) -> list[str]:
    """Tracked files in the folders `wanted`, or of these names, without pictures and weights."""
    return [
        name for name in tracked_files()
        if any(name == one or name.startswith(one + "/") for one in wanted) and not name.endswith(LEFT_OUT)
    ]  # fmt: skip


def _of_nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whoever unpacks it learns nothing of who has built it, and owns the files."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
