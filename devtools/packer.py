"""The packer of ComfyUI's registry, comfy-cli, in an environment of its own: its requirements would replace ComfyUI's.

It never sends anything: tracking and the search for updates are off by its own settings, and a run that reaches for
the network all the same is ended at that moment.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .comfyui.install import ROOT
from .prepared import HostError, cache_lock, cache_root, make_venv, pip, prepared_folder, venv_python
from .progress import Progress

# comfy-cli, and what reads .comfyignore for it.
PACKAGES = ("comfy-cli==1.23.0", "pathspec==1.1.1")
PACKER_BYTES = 1024**3 // 2
QUIET = {"COMFY_NO_TELEMETRY": "1", "DO_NOT_TRACK": "1", "COMFY_NO_UPDATE_CHECK": "1"}

_OFFLINE = """
import os, runpy, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        os.write(2, f"It reached for the network: {event} {arguments}".encode())
        os._exit(1)

sys.addaudithook(refuse)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def prepare_packer(progress: Progress | None = None) -> Path:
    """Return the interpreter that has comfy-cli, from the cache.

    Raises HostError: too little disk space, or the installation failed.
    """
    progress = progress or Progress()

    def build(folder: Path, report: Progress) -> None:
        report.say(f"preparing {PACKAGES[0]} in {folder} (about 0.35 GB on disk)")
        make_venv(Path(sys.executable), folder, report)
        pip(venv_python(folder), ["install", *PACKAGES], report)

    with cache_lock(progress):
        folder = prepared_folder(
            cache_root() / "comfy-cli", {"packages": list(PACKAGES)}, PACKER_BYTES, build=build, python=venv_python,
            progress=progress,
        )  # fmt: skip
    return venv_python(folder)


def tracked_files(folder: Path = ROOT) -> list[str]:
    """The files that git tracks in ``folder``, as they are now: what has been deleted there is left out."""
    names = _git(folder, "ls-files", "-z").split("\0")
    return [name for name in names if name and os.path.lexists(folder / name)]


def copy_checkout(target: Path) -> Path:
    """Copy this checkout's tracked files, as they are now, into the new git repository ``target``; return it."""
    for name in tracked_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    return as_repository(target)


def as_repository(folder: Path) -> Path:
    """Make a folder a new git repository that tracks all that lies in it; return it."""
    _git(folder, "init", "--quiet")
    track_all(folder)
    return folder


def track_all(repository: Path) -> None:
    """Make git track every file that lies in ``repository``."""
    _git(repository, "add", "--all", "--force")


def pack(python: Path, repository: Path) -> Path:
    """Pack the node pack ``repository`` as ``comfy node publish`` would; return the archive, which lies in it.

    python: what ``prepare_packer`` returned. Raises HostError with comfy-cli's own words if it fails.
    """
    done = run_offline(python, "comfy_cli", ["--skip-prompt", "node", "pack"], repository)
    archive = repository / "node.zip"
    if done.returncode or not archive.is_file():
        raise HostError(f"comfy-cli could not pack {repository}:\n{done.stdout}{done.stderr}")
    return archive


def run_offline(python: Path, module: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a module of the packer's environment in ``folder``; it ends with status 1 if it reaches for the network."""
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as home:
        # It keeps settings and an identity in the home folder: a person's own are neither read nor written.
        homes = dict.fromkeys(("HOME", "USERPROFILE", "COMFY_CACHE_DIR"), home)
        # -I: the folder and PYTHONPATH hold modules of other names than it thinks, such as ``nodes``.
        return subprocess.run(
            [str(python), "-I", "-c", _OFFLINE, module, *arguments], cwd=folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", env={**_without_git(), **QUIET, **homes},
        )  # fmt: skip


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=_without_git())
    if done.returncode:
        raise HostError(f"This command failed:\n  {' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def _without_git() -> dict[str, str]:
    """The environment without the repository that a git hook works on: git would take it for every folder's."""
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
    return {name: value for name, value in os.environ.items() if name not in named}
