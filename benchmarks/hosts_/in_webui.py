"""A UNet's weights under deltas in a WebUI, as a file for each case."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.webui_.checkpoint import write_config
from benchmarks.webui_.server import A1111, Kind, WebUI

NAME, WITHOUT = "hosts", "without a delta"


def weights(kind: Kind, folder: Path, checkpoint: Path, deltas: list[Path], layout: str, dtype: str,
            cases: Mapping[str, list]) -> dict:  # fmt: skip
    """Case → the file that was written, and what ran; the last one is that of the UNet when all tags are gone.

    cases: case → names of deltas with their strengths
    """
    webui, files = WebUI(kind, folder, dtype), {}
    models = webui.folder("Stable-diffusion")
    os.link(checkpoint, models / f"{NAME}.safetensors")
    if kind is A1111:
        write_config(kind.checkout, layout, models / f"{NAME}.yaml")
    for delta in deltas:
        shutil.copy(delta, webui.folder("sara"))
    with webui:
        for case, tags in [*cases.items(), (WITHOUT, [])]:
            webui.draw(" ".join(["a cat", *(f"<sara:{name}:{strength}>" for name, strength in tags)]))
            files[case] = str(folder / f"{len(files)}.safetensors")
            about = webui.get("/probe/unet", path=files[case])
    return {"files": files, **about}
