"""A UNet's weights under deltas in a WebUI, as a file for each case."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.webui_.checkpoint import write_config
from benchmarks.webui_.server import A1111, Kind, WebUI

NAME = "hosts"


def weights(kind: Kind, folder: Path, checkpoint: Path, deltas: list[Path], layout: str, dtype: str,
            prompts: Mapping[str, str]) -> dict:  # fmt: skip
    """Case → the file that was written, and what ran. prompts: case → a prompt with its tags"""
    webui, files = WebUI(kind, folder, dtype), {}
    models = webui.folder("Stable-diffusion")
    os.link(checkpoint, models / f"{NAME}.safetensors")
    if kind is A1111:
        write_config(kind.checkout, layout, models / f"{NAME}.yaml")
    for delta in deltas:
        shutil.copy(delta, webui.folder("sara"))
    with webui:
        for case, prompt in prompts.items():
            webui.draw(prompt)
            files[case] = str(folder / f"{case}.safetensors")
            about = webui.get("/probe/unet", path=files[case])
        webui.draw("a cat")
        files[""] = str(folder / "without.safetensors")
        webui.get("/probe/unet", path=files[""])
    return {"files": files, **about}
