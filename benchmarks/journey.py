"""From photos to a picture in their style, in ComfyUI's page alone: what it takes a person and the machine.

    python dev.py bench journey [--form graph|app] [--pictures N]

In a Chromium at a real ComfyUI, with the demo's model and nothing else there: somebody looks for "lora train" among the
templates, chooses pictures without captions, types the trigger word, presses Apply preset and Run. Every click, choice
of files and text that is typed is counted. The demo's judge looks at the picture that comes out, and at the one that
the model would have drawn before. Ends with 1 if it is not recognised, or takes more deeds than promised.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.report import text_table
from devtools.browser import NONE_FOUND, chromium, find_chromium
from devtools.checkpoint import demo_checkpoint
from devtools.comfyui.install import HostError, prepare
from devtools.comfyui.server import Server
from devtools.progress import Progress
from tests.support.browser import NODES_2, ComfyPage
from tests.support.person import FORMS, MOST_DEEDS, Person, styled_pictures, walk


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench journey", description=__doc__.splitlines()[0])
    parser.add_argument("--form", choices=FORMS, action="append", help="only in this one (default: in both)")
    parser.add_argument("--pictures", type=int, default=12, help="how many are chosen (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        rows = [measured(form, arguments.pictures) for form in arguments.form or FORMS]
    except HostError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    header = ["form", "deeds", "seconds", "in the style", "before it"]
    print("\n".join(text_table(header, [[*map(str, row[:-1])] for row in rows])))
    for form, *_, deeds in rows:
        print(f"{form}: {', '.join(deeds)}")
    return 0 if all(row[1] <= MOST_DEEDS and row[3] and not row[4] for row in rows) else 1


def measured(form: str, pictures: int) -> list:
    """Form, number of deeds, seconds, whether the judge sees the style with the delta and without it, the deeds."""
    if find_chromium() is None:
        raise HostError(NONE_FOUND)
    checkpoint = demo_checkpoint(Progress())
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-bench-") as folder:
        base, photos = Path(folder, "comfyui"), Path(folder, "photos")
        photos.mkdir()
        files = styled_pictures(photos, pictures)
        with Server(prepare(), base, model_paths={"checkpoints": checkpoint.parent}) as server, chromium(
            find_chromium()
        ) as browser:
            person = Person(ComfyPage(browser, server, NODES_2))
            start = time.monotonic()
            drawn = walk(person, files, form)
            seconds = round(time.monotonic() - start)
    return [form, len(person.deeds), seconds, drawn.is_styled, drawn.base_is_styled, person.deeds]


if __name__ == "__main__":
    sys.exit(main())
