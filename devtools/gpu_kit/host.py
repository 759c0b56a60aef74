"""The kit of the pack in a real ComfyUI, benchmarks/gpu_host.py."""

import shutil
import tempfile
from pathlib import Path

from ..comfyui.install import ROOT
from . import comfyui_files, weights, wheels
from .kit import Kit

# The checkout is the node pack, too.
CHECKOUT = (
    "__init__.py", "install.py", "pyproject.toml", "requirements.txt", "sara_core", "nodes", "js", "locales",
    "devtools", "demo", "benchmarks",
)  # fmt: skip
# The autoencoder of the checkpoint, whose other weights are random.
WEIGHTS = ("demo/taesd.safetensors",)
PACKAGES = (
    *wheels.COMFYUI_OWN,
    "torchsde==0.2.6", "trampoline==0.1.2",  # a sampler's noise, imported with every sampler
    "alembic==1.20.1", "sqlalchemy==2.1.9", "greenlet==3.5.6", "mako==1.4.3",  # the server's database
    "blake3==1.0.11",  # the server's digests of files
    "pydantic==2.14.4", "pydantic-core==2.50.5", "annotated-types==0.8.0", "typing-extensions==4.16.0",
    "typing-inspection==0.4.5",  # the server's messages, and what pydantic asks for, by the versions that it takes
    "pydantic-settings==2.16.3", "python-dotenv==1.2.4",  # read where a pack's pyproject.toml is
    "spandrel==0.4.2", "simpleeval==1.0.8",  # nodes of core: upscaling, arithmetic
)  # fmt: skip
NEEDS = (
    "torch", "torchvision", "torchaudio", "numpy", "scipy", "PIL", "safetensors", "transformers", "tokenizers",
    "sentencepiece", "einops", "aiohttp", "yarl", "yaml", "tqdm", "psutil", "requests", "filelock",
)  # fmt: skip
# 35 MB that only video needs; nodes and server import it at once.
STUB = Path(__file__).with_name("av_stub.py")


def fill(kit: Kit, comfyui: Path, python: str) -> None:
    kit.add_script("host", NEEDS)
    kit.add_checkout(*CHECKOUT)
    kit.add_archive("comfyui", comfyui, comfyui_files.server(comfyui))
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as folder:
        site = Path(folder)
        wheels.add_packages(PACKAGES, python, site, kit.progress)
        (site / "av").mkdir()
        shutil.copy(STUB, site / "av" / "__init__.py")
        kit.add_archive("site", site, wheels.files(site))
    weights.pack(ROOT, list(WEIGHTS), kit.folder / "weights")
