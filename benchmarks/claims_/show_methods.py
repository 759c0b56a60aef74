"""What each of the paper's methods draws in a new style, as a picture, below the style's own icons and the base.

    COMFYUI_PATH=… <ComfyUI's Python> -m benchmarks.claims_.show_methods --picture FILE [--style STYLE] [--json LINES]
                                                                         [--work FOLDER] [--seed N]

Every method is trained as in the table, at the best of the rates that LINES have; that takes some minutes each. On the
left are names that nothing was trained on, with the style's trigger; on the right the same model without the trigger,
where the base's own pictures are to stay as they were. No picture is chosen: the names are the first that the table
judges.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.claims import RESULTS
from demo import comfy_host

STYLED, PLAIN = 10, 6
ENLARGED = 72
LABEL, GAP, HEADING, TEXT = 150, 24, 28, 16
ICONS, BASE = "icons", "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, help="ComfyUI's folder (default: $COMFYUI_PATH)")
    parser.add_argument("--work", type=Path, default=Path("claims-training"), help="where the icons are kept")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="LINES", help="of a run (default: the committed)")
    parser.add_argument("--style", default="openmoji", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the table's (default: %(default)s)")
    parser.add_argument("--picture", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comfy_host.prepare(arguments.comfyui)

    from . import bench, icon_sets, lines, names, plan, protocol, render

    measuring, known = bench.Bench(arguments.work / "icons"), lines.read(arguments.json)
    asked = measuring.asked(arguments.style)[: STYLED + PLAIN]
    with_trigger = [names.caption(name, bench.trigger(arguments.style)) for name in asked[:STYLED]]
    without = list(map(names.caption, asked[STYLED:]))

    def row(model: torch.nn.Module) -> list[np.ndarray]:
        model = model.requires_grad_(False).eval()
        drawn = torch.cat([measuring.drawn(model, with_trigger), measuring.drawn(model, without, seed=1)])
        return list((drawn * 255).round().byte().numpy())

    rows = {
        ICONS: _icons(render, icon_sets.BY_NAME[arguments.style], measuring.work, asked[:STYLED])
        + _icons(render, icon_sets.NOTO, measuring.work, asked[STYLED:]),
        BASE: row(measuring.new_model()),
    }  # fmt: skip
    share = protocol.BUDGETS[1]
    for method in plan.PAPERS:
        rate = plan.best_known_rate(known, method, share)
        trained = measuring.trained(protocol.Cell(method, share, arguments.style, arguments.seed, rate))
        rows[method] = row(trained.model)
        print(f"{method} at {rate:.1e}: {trained.count:,} values", flush=True)
    headings = f"“{bench.trigger(arguments.style)} …”, names that nothing was trained on", "without it, as Noto"
    sheet(rows, headings).save(arguments.picture, quality=88)


def _icons(render, icons, folder: Path, wanted: Sequence[str]) -> list[np.ndarray]:
    found, pixels = render.pictures(icons, folder)
    return [pixels[found.index(name)] for name in wanted]


def sheet(rows: dict[str, list[np.ndarray]], headings: tuple[str, str]) -> Image.Image:
    """Rows of STYLED and PLAIN pictures, uint8 [64, 64, 3] each, with their labels, below two headings."""
    font = ImageFont.load_default(TEXT)
    apart = LABEL + STYLED * ENLARGED + GAP
    whole = Image.new("RGB", (apart + PLAIN * ENLARGED, HEADING + len(rows) * ENLARGED), "white")
    draw = ImageDraw.Draw(whole)
    for left, heading in zip((LABEL, apart), headings):
        draw.text((left + 4, HEADING // 2), heading, "black", font, anchor="lm")
    for number, (label, pictures) in enumerate(rows.items()):
        top = HEADING + number * ENLARGED
        draw.text((8, top + ENLARGED // 2), label, "black", font, anchor="lm")
        for place, pixels in enumerate(pictures):
            left = LABEL + place * ENLARGED if place < STYLED else apart + (place - STYLED) * ENLARGED
            picture = Image.fromarray(pixels).resize((ENLARGED, ENLARGED), Image.LANCZOS)
            whole.paste(picture, (left, top))
    return whole


if __name__ == "__main__":
    main()
