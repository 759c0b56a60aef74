"""The kit of the claims' table, benchmarks/claims.py."""

import tempfile
from pathlib import Path

from ..comfyui.install import ROOT
from ..prepared import HostError
from . import comfyui_files, icons, weights, wheels
from .kit import Kit

CHECKOUT = ("sara_core", "devtools", "demo", "benchmarks")
WEIGHTS = tuple(f"benchmarks/claims_/{name}.safetensors" for name in ("unet", "taesd", "judge"))
PACKAGES = (
    *wheels.COMFYUI_OWN,
    "peft==0.21.2",  # LoRA and DoRA of the table, by the version that its committed lines are of
)
NEEDS = (
    "torch", "torchvision", "torchmetrics", "numpy", "scipy", "PIL", "safetensors", "transformers", "tokenizers",
    "einops", "accelerate", "psutil", "tqdm",
)  # fmt: skip


def fill(kit: Kit, comfyui: Path, python: str, icon_folder: Path) -> None:
    """icon_folder: where the icon sets are kept rendered; those that are not are fetched and rendered first."""
    # Here, so that the other kit asks for no icons.
    from benchmarks.claims_ import icon_sets, render

    kit.add_script("claims", NEEDS)
    kit.add_checkout(*CHECKOUT)
    kit.add_archive("comfyui", comfyui, comfyui_files.library(comfyui))
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-") as site:
        wheels.add_packages(PACKAGES, python, Path(site), kit.progress)
        kit.add_archive("site", Path(site), wheels.files(Path(site)))
    kit.progress.say("packing weights")
    weights.pack(ROOT, list(WEIGHTS), kit.folder / "weights")
    try:
        for one in icon_sets.ALL:
            kit.progress.say(f"packing the icons of {one.name}")
            render.pictures(one, icon_folder)
            icons.pack(render.kept(one, icon_folder), kit.folder / "icons")
    except icon_sets.NoIconsError as error:
        raise HostError(str(error)) from error
