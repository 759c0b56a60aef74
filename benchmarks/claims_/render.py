"""SVG pictures → pixels, as everything that is trained and judged sees them."""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from . import icon_sets, names

# A margin, and a ground that no picture cares about.
MARGIN, GROUND = 2, (255, 255, 255)


def pictures(icons: icon_sets.IconSet, folder: Path, size: int = 64) -> tuple[list[str], np.ndarray]:
    """Names and pixels uint8 [n, size, size, 3] of a set's usable pictures; kept in `folder`, rendered once."""
    file = kept(icons, folder, size)
    if not file.is_file():
        drawings = icon_sets.drawings(icons, folder)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = names.usable(drawings)
        pixels = np.stack([render(drawings[name], size) for name in chosen])
        partial = file.with_suffix(f".{os.getpid()}.partial.npz")
        np.savez_compressed(partial, names=np.array(chosen), pixels=pixels)
        partial.replace(file)
    with np.load(file) as content:
        return content["names"].tolist(), content["pixels"]


def kept(icons: icon_sets.IconSet, folder: Path, size: int = 64) -> Path:
    """The file in which `pictures` keeps a set."""
    return folder / f"{icons.name}-{icons.version}-{size}.npz"


def render(svg: str, size: int) -> np.ndarray:
    """One picture, uint8 [size, size, 3]: drawn at twice the size, centred on the ground, then made smaller."""
    import resvg_py

    inner = 2 * (size - 2 * MARGIN)
    png = resvg_py.svg_to_bytes(svg_string=svg, width=inner, height=inner, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    ground = Image.new("RGBA", (2 * size, 2 * size), (*GROUND, 255))
    ground.alpha_composite(drawn, ((2 * size - drawn.width) // 2, (2 * size - drawn.height) // 2))
    return np.asarray(ground.convert("RGB").resize((size, size), Image.LANCZOS))


def grid(pixels: Iterable[np.ndarray], columns: int) -> Image.Image:
    """Pictures of equal size, uint8 [h, w, 3] each, in rows."""
    pixels = list(pixels)
    height, width, _ = pixels[0].shape
    sheet = Image.new("RGB", (columns * width, -(-len(pixels) // columns) * height), GROUND)
    for number, one in enumerate(pixels):
        sheet.paste(Image.fromarray(one), (number % columns * width, number // columns * height))
    return sheet
