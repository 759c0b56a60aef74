"""Folders of the cache: each complete or not there, and never changed again once another checkout may be using it.

A folder counts as prepared only when its marker, written last, names exactly what was to be installed: after an
interruption it is removed and made again. A folder that another recipe was prepared in belongs to another checkout,
perhaps to a run that is going on: the new recipe gets a folder beside it. Standard library only: this runs before
anything is installed.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from .locking import locked
from .progress import Progress

MARKER = "prepared.json"


class HostError(Exception):
    """Something that the tools work with could not be prepared or run; the message says why and what to do."""


def cache_root() -> Path:
    """The cache, which every checkout on this machine shares: SARA_CACHE, else in the platform's cache folder."""
    if os.environ.get("SARA_CACHE"):
        return Path(os.environ["SARA_CACHE"]).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "comfyui-sara"
    return Path.home() / ".cache" / "comfyui-sara"


def prepared_folder(
    folder: Path,
    recipe: dict,
    needed_bytes: int,
    build: Callable[[Path, Progress], None],
    python: Callable[[Path], Path],
    progress: Progress,
) -> Path:
    """Return ``folder``, or one beside it, prepared by ``recipe``; hold ``cache_lock`` meanwhile.

    Args:
        recipe: what JSON can hold; whatever is made of other things must have another recipe.
        needed_bytes: free space without which nothing is begun.
        build: fills the empty folder; called only if the folder is not prepared yet.
        python: the interpreter in a prepared folder, which must still run.

    Raises:
        HostError: too little disk space, or the building failed.
    """
    beside = folder.with_name(f"{folder.name}-{_digest(recipe)}")
    if _recipe_of(folder) not in (None, recipe) or _recipe_of(beside) == recipe:
        folder = beside
    if _recipe_of(folder) == recipe and _runs(python(folder)):
        return folder
    if folder.exists():
        progress.say(f"removing {folder}: it is incomplete, or its Python is gone")
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise HostError(
            f"{folder} needs about {needed_bytes / 1024**3:.1f} GiB, and its disk has {free / 1024**3:.1f} GiB free. "
            "Free some space, or set SARA_CACHE to a folder on a larger disk."
        )
    folder.mkdir()
    build(folder, progress)
    temporary = folder / (MARKER + ".new")
    temporary.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    os.replace(temporary, folder / MARKER)
    return folder


def cache_lock(progress: Progress):
    """The lock under which folders of the cache are prepared; a context manager."""
    return locked(cache_root() / "lock", lambda: progress.update("waiting for another process that is preparing"))


def venv_python(folder: Path) -> Path:
    """The interpreter of the virtual environment ``folder``."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def make_venv(python: Path, folder: Path, progress: Progress) -> None:
    """Make a virtual environment with nothing but pip, for the interpreter ``python``."""
    run([str(python), "-m", "venv", str(folder)], progress)


def make_venv_upon(python: Path, folder: Path, progress: Progress) -> None:
    """Make a virtual environment that also sees all packages of the virtual environment of ``python``."""
    make_venv(python, folder, progress)
    (own,) = _package_folders(venv_python(folder))
    # With all that lies below, too: a .pth file in a folder that comes from a .pth file is not read.
    (Path(own) / "_base.pth").write_text("\n".join(_package_folders(python)) + "\n", encoding="utf-8")


def pip(python: Path, arguments: list[str], progress: Progress) -> None:
    """Run pip in the environment of ``python``."""
    run([str(python), "-m", "pip", "--disable-pip-version-check", *arguments], progress)


def run(command: list[str], progress: Progress) -> None:
    """Run a command, showing how far it is; its output is repeated only if it fails, in the HostError."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    lines: list[str] = []
    # Read beside the waiting: while pip unpacks gigabytes it prints nothing, and progress must go on.
    reader = threading.Thread(target=lambda: lines.extend(line.rstrip() for line in process.stdout), daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(timeout=1)
            steps = [line.strip() for line in lines if _PIP_STEP.match(line)]
            if steps:
                progress.update(steps[-1].split(":")[0][:100])
        returncode = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if returncode:
        raise HostError("This command failed:\n  " + " ".join(command) + "\n" + "\n".join(lines[-30:]))


_PIP_STEP = re.compile(r"\s*(Collecting|Downloading|Installing|Building|Using cached)")


def _package_folders(python: Path) -> list[str]:
    """The folders in which ``python`` finds installed packages, first place first."""
    script = "import sys; print(*(path for path in sys.path if path.endswith('site-packages')), sep='\\n')"
    command = [str(python), "-I", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _runs(python: Path) -> bool:
    """False when the interpreter is gone, as after an update of the Python that a virtual environment links to."""
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def _recipe_of(folder: Path):
    """The recipe by which a folder was prepared; None if it is not there or not complete."""
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(recipe: dict) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
