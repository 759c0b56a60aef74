"""Readers in environments of their own: what they require would replace what ComfyUI and the tests have.

Each is a virtual environment upon the one that runs this, with a pinned package and what its reading of LoRAs imports
beside that, and nothing else that it requires.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from devtools.prepared import cache_lock, cache_root, make_venv_upon, pip, prepared_folder, venv_python
from devtools.progress import Progress


@dataclass(frozen=True)
class Environment:
    """packages: pinned; module: of benchmarks.readers_, that is run in it; needed_bytes: on the disk"""

    packages: tuple[str, ...]
    module: str
    needed_bytes: int


ENVIRONMENTS = {
    "invokeai": Environment(
        (
            "invokeai==6.14.2", "compel==2.5.1", "Deprecated==1.3.1", "wrapt==2.5.2", "gguf==0.19.0", "onnx==1.23.2",
            "ml_dtypes==0.6.0", "protobuf==7.36.2", "onnxruntime==1.32.0", "opencv-python-headless==5.0.0.93",
            "picklescan==1.0.5",
        ),
        "in_invokeai", 2 * 1024**3,
    ),
    "kohya": Environment(("lycoris-lora==4.1.3", "toml==0.10.2"), "in_kohya", 100 * 1024**2),
}  # fmt: skip


def prepare(reader: str, progress: Progress | None = None) -> Path:
    """The interpreter of a reader's environment, from the cache.

    Raises devtools.prepared.HostError: too little disk space, or the installation failed.
    """
    progress, environment = progress or Progress(), ENVIRONMENTS[reader]

    def build(folder: Path, report: Progress) -> None:
        report.say(f"preparing {environment.packages[0]} in {folder}")
        make_venv_upon(Path(sys.executable), folder, report)
        pip(venv_python(folder), ["install", "--no-deps", *environment.packages], report)

    with cache_lock(progress):
        # An environment upon another one holds for that one only.
        recipe = {"packages": list(environment.packages), "upon": sys.executable}
        folder = prepared_folder(
            cache_root() / f"reader-{reader}", recipe, environment.needed_bytes, build, venv_python, progress
        )
    return venv_python(folder)
