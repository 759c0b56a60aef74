#!/bin/sh
# diffusers 0.42.1: load_image gives the hidden colour of transparent places, and white for grey pictures of 16 bits.
#
# Expected: a picture as every viewer shows it: what is transparent on some plain ground, a grey ramp of 16 bits as a
# ramp.
# Instead: it drops the alpha channel, so that a place that is fully transparent has whatever colour the paint program
# left in it (here magenta), and it cuts 16-bit grey off at 255 of 65535: a ramp from black to white has one black pixel
# in its first 256th, and white everywhere else. There is no warning. (The turn by EXIF data, easier to forget, is made.)
# Why it matters: training scripts and pipelines (image to image, inpainting, ControlNet, IP-Adapter) read pictures with
# it, or with the same `convert("RGB")`: cut-out characters and stickers are learnt on coloured grounds that nobody has
# seen, and scans, depth maps and renderings of 16 bits as white paper.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 pillow==13.0.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - "$dir" <<'END'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from diffusers.utils import load_image
from PIL import Image

folder = Path(sys.argv[1])


def loaded(array):
    """The pixels of an array that was saved as PNG, as load_image gives them."""
    Image.fromarray(array).save(folder / "picture.png")
    return np.asarray(load_image(str(folder / "picture.png")))


cut_out = np.full((4, 4, 4), (255, 0, 255, 0), np.uint8)  # magenta that nobody sees
cut_out[1:3, 1:3] = (255, 0, 0, 255)
corner = tuple(map(int, loaded(cut_out)[0, 0]))
ramp = np.arange(0, 65536, 257, dtype=np.uint16).reshape(1, -1)
of_16_bits, of_8_bits = loaded(ramp)[0, :, 0], loaded((ramp // 257).astype(np.uint8))[0, :, 0]

print(f"diffusers {version('diffusers')}, pillow {version('pillow')}")
print(f"a fully transparent corner: {corner}")
print(f"a ramp from black to white in  8 bits: {of_8_bits[::32]}, {np.mean(of_8_bits == 255):.1%} white")
print(f"the same ramp in 16 bits:              {of_16_bits[::32]}, {np.mean(of_16_bits == 255):.1%} white")
as_stated = corner == (255, 0, 255) and (of_8_bits == np.arange(256)).all() and np.mean(of_16_bits == 255) > 0.99
sys.exit(0 if as_stated else "This is no longer so.")
END
