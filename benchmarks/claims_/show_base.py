"""What the base model of the claims can do: how often its pictures are known by name, and some of them as a picture.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.show_base [--work FOLDER] [--count N] [--picture FILE]

The picture has a column for each name: Noto's icon, what the autoencoder makes of it, what the model draws.
"""

import argparse
from pathlib import Path

import torch

from demo import comfy_host

SHOWN = 16
ENLARGED = 72


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where the icons are kept")
    parser.add_argument("--count", type=int, default=250, help="of names drawn (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help=f"write {SHOWN} of them to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comfy_host.prepare(arguments.comfyui)

    from PIL import Image

    from . import base, bench, icon_sets, names, render

    icons = arguments.work / "icons"
    measuring = bench.Bench(icons)
    known, pixels = render.pictures(icon_sets.NOTO, icons)
    rows = torch.randperm(len(known), generator=torch.Generator().manual_seed(5))[: arguments.count].tolist()
    asked = [known[row] for row in rows]
    icons_of = torch.from_numpy(pixels[rows]).float() / 255
    with torch.no_grad():
        latents = measuring.autoencoder.encode(icons_of.permute(0, 3, 1, 2) * 2 - 1)
        decoded = measuring.autoencoder.decode(latents).permute(0, 2, 3, 1).add(1).div(2).clamp(0, 1)
    drawn = measuring.drawn(measuring.new_model().requires_grad_(False).eval(), list(map(names.caption, asked)))
    for called, pictures in (("icons", icons_of), ("reconstructions", decoded), ("drawn", drawn)):
        right = measuring.verdicts.is_right(pictures, asked, known).float().mean()
        style = (measuring.verdicts.styles(pictures).argmax(1) == 0).float().mean()
        print(f"{called}: the right name among 100 for {right:.3f}, taken for Noto {style:.3f}")
    print(f"mean error of reconstructions {(decoded - icons_of).abs().mean():.3f}; base {base.UNET_FILE.name}")
    if arguments.picture:
        shown = [(each * 255).round().byte().numpy() for part in (icons_of, decoded, drawn) for each in part[:SHOWN]]
        sheet = render.grid(shown, SHOWN)
        size = sheet.width * ENLARGED // 64, sheet.height * ENLARGED // 64
        sheet.resize(size, Image.LANCZOS).save(arguments.picture, quality=88)


if __name__ == "__main__":
    main()
