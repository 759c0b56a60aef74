"""One start of a WebUI, from the first picture to the last training, and what held of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch

from benchmarks.webui_.server import Kind, WebUI
from devtools.progress import Progress
from sara_core.delta import SparseDelta
from sara_core.delta import metadata as keys

from . import inputs, passes
from .asked import Asked

CLAIMS = {
    "applied": "<sara:…:0.8> gives the weights that SparseDelta.apply_ gives",
    "undone": "without the tag, all tensors and the picture are the first ones",
    "bad tags": "missing, broken and another family's: a line, the tensors and picture of no tag",
    "hires": "hires with another strength: the UNet of each in its own pass",
    "batch": "2 × 2 pictures in batches: the UNet of the tag in every pass",
    "img2img": "img2img: the UNet of the tag in every pass",
    "bad training": "an unknown folder, setting and snapshot are refused by a sentence",
    "trained": "a training finishes, is listed, and leaves all tensors as they were",
    "drawn": "its delta as a tag gives the UNet that the training ended with",
    "again": "the same training after a picture with a delta: the same delta",
    "interrupted": "/sdapi/v1/interrupt ends it, keeps what it did, and leaves all tensors as they were",
    "one at a time": "a second training is refused while one goes on",
    "resumed": "resumed, it ends in the delta of the run that was not interrupted",
    "stopped": "Stop and keep: the delta is there, all tensors as they were",
    "finished early": "Finish now: the delta is there, all tensors as they were",
    "chosen": "a checkpoint chosen after the last picture is the one that is trained",
    "second pass": "after a hires pass, or a picture, with another checkpoint, the chosen one is trained",
    "fp8": "with weights in fp8 loaded, a training ends at once with a sentence",
    "not fp8": "chosen anew without fp8, and without a picture in between, it is trained",
    "first again": "back at the first checkpoint, all tensors and the picture are the first ones",
}
SHORT = {
    "folder": inputs.PICTURES, "resolution": 128, "steps": 10, "density": 0.02, "learning_rate": 1e-3, "batch_size": 1,
    "snapshot_every": 0, "caption_dropout": 0.2,
}  # fmt: skip
LONG, SOME = 500, 3
STRENGTH = 0.8


def round_in(kind: Kind, folder: Path, unet: Path, layout: str, progress: Progress) -> tuple[dict, dict]:
    """Claim → what is wrong, or None; and what ran."""
    webui = WebUI(kind, folder, "float32")
    progress.say("writing checkpoints, deltas and pictures")
    inputs.write(webui, folder, unet, layout)
    progress.say("starting the WebUI")
    with webui:
        one = _Round(Asked(webui, folder), unet)
        found = {}
        for claim, wrong in one.claims():
            found[claim] = wrong or None
            progress.say(f"{CLAIMS[claim]}: {wrong or 'yes'}")
        return found, webui.get("/probe/about")


class _Round:
    def __init__(self, asked: Asked, unet: Path):
        self.asked, self.unet = asked, unet
        self.kind = asked.webui.kind
        self._choose(inputs.FIRST)
        self.picture, _ = asked.draw("a cat")
        self.digests = asked.digests()
        self.whole: dict | None = None

    def _choose(self, checkpoint: str, is_fp8: bool = False) -> None:
        self.asked.choose(checkpoint, self.kind.fp8 if is_fp8 else self.kind.as_stored)

    def claims(self) -> Iterator[tuple[str, str]]:
        yield "applied", self._applied()
        yield "undone", self._undone()
        yield "bad tags", "; ".join(filter(None, map(self._bad_tag, (inputs.MISSING, inputs.BROKEN, inputs.FOREIGN))))
        yield from passes.claims(self.asked)
        yield "bad training", self._bad_training()
        yield "trained", self._trained()
        yield "drawn", self._drawn()
        yield "again", self._again()
        yield from self._interrupted()
        yield "resumed", self._resumed()
        yield "stopped", self._ended_early("stop", "stopped")
        yield "finished early", self._ended_early("finish", "finished")
        self._choose(inputs.SECOND)
        yield "chosen", self._trains(inputs.SECOND)
        self._choose(inputs.FIRST)
        self.asked.draw("a cat", **self._with_another_checkpoint(self.asked.title(inputs.SECOND)))
        yield "second pass", self._trains(inputs.FIRST)
        self._choose(inputs.SECOND, is_fp8=True)
        self.asked.draw("a cat")
        yield "fp8", self._refused_for_fp8()
        self._choose(inputs.FIRST)
        yield "not fp8", self._trains(inputs.FIRST)
        # Another prompt, so that the text encoder is asked anew: some widen a part of it for that, and keep it so.
        self.asked.draw("a dog")
        yield "first again", self._undone()

    def _applied(self) -> str:
        tag = f"<sara:{inputs.FITTING}:{STRENGTH}>"
        picture, lines = self.asked.draw(f"a cat {tag}")
        weights = {inputs.PREFIX + name: weight for name, weight in safetensors.torch.load_file(self.unet).items()}
        SparseDelta.load(self.asked.delta(inputs.FITTING)).apply_(weights, STRENGTH)
        found = self.asked.unet()
        other = [name for name, weight in weights.items() if not torch.equal(found[name], weight)]
        return _said(lines and str(lines), other and f"{len(other)} weights differ",
                     picture == self.picture and "the picture is that of no tag")  # fmt: skip

    def _undone(self) -> str:
        picture, lines = self.asked.draw("a cat")
        return _said(lines and str(lines), picture != self.picture and "another picture", self._changed())

    def _bad_tag(self, name: str) -> str:
        picture, lines = self.asked.draw(f"a cat <sara:{name}:1>")
        return _said(not lines and f"{name}: no line", picture != self.picture and f"{name}: another picture",
                     self._changed())  # fmt: skip

    def _bad_training(self) -> str:
        asked = {
            "no such folder": {**SHORT, "name": "x", "folder": "dogs"},
            "no such setting": {**SHORT, "name": "x", "colour": "red"},
            "no such snapshot": {"resume": "x_step0000003"},
        }
        return _said(*(self.asked.refused(given) is None and f"{what}: not refused" for what, given in asked.items()),
                     self._changed())  # fmt: skip

    def _trained(self) -> str:
        ended = self.asked.train({**SHORT, "name": "whole"})
        if ended["phase"] != "finished":
            return f"{ended['phase']}: {ended['message']}"
        self.whole, self.ended_with = self.asked.entries("whole"), self.asked.ended_with()
        listed = "whole" in str(self.asked.webui.get("/sara/v1/deltas"))
        return _said(len(ended["losses"]) != SHORT["steps"] and f"{len(ended['losses'])} losses",
                     not listed and "not among the deltas", self._changed())  # fmt: skip

    def _drawn(self) -> str:
        _, lines = self.asked.draw("a cat <sara:whole:1>")
        return _said(lines and str(lines), _different(self.ended_with, self.asked.unet_digests()),
                     not self.ended_with and "no training ended")  # fmt: skip

    def _again(self) -> str:
        ended = self.asked.train({**SHORT, "name": "again"})
        return _said(ended["phase"] != "finished" and ended["message"], self._differs("again"), self._changed())

    def _interrupted(self) -> Iterator[tuple[str, str]]:
        self.asked.start({**SHORT, "name": "part"})
        self.asked.until_step(SOME)
        yield "one at a time", _said(self.asked.refused({**SHORT, "name": "x"}) is None and "not refused")
        self.asked.webui.post("/sdapi/v1/interrupt", {})
        ended = self.asked.until_over()
        yield "interrupted", _said(ended["phase"] != "stopped" and f"{ended['phase']}: {ended['message']}",
                                   not ended["snapshot"] and "no snapshot", _not_named(ended, "part"),
                                   self._changed())  # fmt: skip
        self.snapshot = ended["snapshot"]

    def _resumed(self) -> str:
        ended = self.asked.train({"resume": self.snapshot})
        return _said(ended["phase"] != "finished" and ended["message"], self._differs("part"), self._changed())

    def _ended_early(self, wanted: str, phase: str) -> str:
        name = f"by {wanted}"
        self.asked.start({**SHORT, "name": name, "steps": LONG})
        self.asked.until_step(SOME)
        self.asked.webui.post(f"/sara/v1/{wanted}", {})
        ended = self.asked.until_over()
        return _said(ended["phase"] != phase and f"{ended['phase']}: {ended['message']}",
                     ended["step"] >= LONG and "it was not ended", self.asked.entries(name) is None and "no delta",
                     _not_named(ended, name), self._changed())  # fmt: skip

    def _with_another_checkpoint(self, title: str) -> dict:
        if self.kind.has_pipelines:  # SD.Next has none for hires
            return {"override_settings": {"sd_model_checkpoint": title}}
        return {**passes.HIRES, "hr_checkpoint_name": title}

    def _trains(self, checkpoint: str) -> str:
        ended = self.asked.train({**SHORT, "name": "other", "steps": 2})
        if ended["phase"] != "finished":
            return ended["message"]
        said = SparseDelta.load(self.asked.delta("other")).metadata[keys.BASE_NAME]
        return _said(Path(said).stem != checkpoint and f"{said} was trained")

    def _refused_for_fp8(self) -> str:
        ended = self.asked.train({**SHORT, "name": "x"})
        is_said = "fp8" in ended["message"] or "float8" in ended["message"]
        return _said((ended["phase"] != "failed" or not is_said) and f"{ended['phase']}: {ended['message']}")

    def _changed(self) -> str:
        return _different(self.digests, self.asked.digests())

    def _differs(self, name: str) -> str:
        found = self.asked.entries(name)
        if self.whole is None or found is None:
            return "no delta to compare"
        is_same = found.keys() == self.whole.keys() and all(
            torch.equal(entry.indices, whole.indices) and torch.equal(entry.values, whole.values)
            for entry, whole in ((entry, self.whole[weight]) for weight, entry in found.items())
        )
        return "" if is_same else "another delta"


def _different(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:
        return ""
    return f"{len(names)} of {len(before)} tensors are others ({names[0]}: {before.get(names[0])}, {now.get(names[0])})"


def _not_named(ended: Mapping, name: str) -> str:
    return "" if ended["delta"] == name else f"the status names {ended['delta']} as its delta"


def _said(*problems: str | bool) -> str:
    return ", ".join(str(problem) for problem in problems if problem)
