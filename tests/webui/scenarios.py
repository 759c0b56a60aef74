"""What people do at a WebUI, step by step: one table for every WebUI and for whatever stands in for one.

After each picture its weights are compared with the reference's, to the last bit; at the end of each scenario a prompt
without tags must give the weights of the checkpoint again.
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from safetensors.torch import save_file

from sara_core import SparseDelta
from tests.webui.fakes.models import checkpoint
from tests.webui.fakes.webui import CHECKPOINTS
from tests.webui.reference import delta_of, differing, expected, lora_of


@dataclass(frozen=True)
class Draw:
    """Pictures of a prompt. hr: the second pass's prompt; says: what its page has a line with"""

    prompt: str
    n_iter: int = 1
    hr: str | None = None
    hr_checkpoint: str | None = None
    checkpoint: str | None = None
    lowvram: bool = False
    says: str = ""


@dataclass(frozen=True)
class Rewrite:
    """The file of one name gets the content of another's."""

    name: str
    like: str


@dataclass(frozen=True)
class OldWay:
    """The host's option to leave weights alone and to compute LoRAs beside them."""

    on: bool


@dataclass(frozen=True)
class Fail:
    """A picture for which the activate of sara tags raises, and is called again without any."""

    prompt: str


class ReloadUI:
    """Every weight is the checkpoint's before the scripts are loaded again."""


class TakeOff:
    """What a training asks for."""


_BOTH = "<sara:alpha:0.8> <lora:plain:1>"
SCENARIOS = {
    "a sara tag": [Draw("<sara:alpha:1>"), Draw("<sara:alpha:0.8>"), Draw("<sara:alpha:-0.5>"), Draw("<sara:alpha>")],
    "a lora tag": [Draw("<lora:alpha:0.8>"), Draw("<lora:beta:0.8>"), Draw("<lora:beta:0.4>")],
    "both kinds of tags": [Draw("<sara:alpha:0.8>"), Draw("<lora:alpha:0.8>"), Draw("<sara:alpha:0.8>")],
    "strengths of their own": [Draw("<sara:alpha:0.3:0.7>"), Draw("<lora:alpha:0:1>"), Draw("<lora:alpha:1:0>")],
    "strength 0": [Draw("<sara:alpha:0>"), Draw("<sara:alpha:1>"), Draw("<sara:alpha:0>")],
    "several": [
        Draw("<sara:alpha:0.8> <lora:beta:0.4> <sara:gamma:-1>"), Draw("<sara:gamma:1> <sara:alpha:0.8>"),
        Draw("<sara:alpha:0.5> <sara:alpha:0.3>"), Draw("<lora:beta:1>"),
    ],
    "with a LoRA": [Draw(_BOTH), Draw("<lora:plain:1> <sara:alpha:0.8>"), Draw("<lora:plain:0.5> <sara:alpha:0.8>"),
                    Draw("<lora:plain:0.5> <sara:alpha:0.2> <lora:other:1>"), Draw("<lora:plain:0.5>")],
    "a LoRA comes": [Draw("<sara:alpha:0.8>"), Draw(_BOTH), Draw("<sara:alpha:0.8>"), Draw("<lora:plain:1>")],
    "a LoRA goes": [Draw("<lora:plain:1>"), Draw(""), Draw("<sara:alpha:0.8>"), Draw("<sara:alpha:0.3>")],
    "batches": [Draw("<sara:alpha:1>", n_iter=3), Draw(_BOTH, n_iter=2), Draw("", n_iter=2)],
    "hires": [Draw("<sara:alpha:1>", hr="<sara:beta:0.5>"), Draw("<sara:alpha:1>", hr="<sara:alpha:1>"),
              Draw("<sara:alpha:1>", hr=""), Draw("", hr="<sara:alpha:1> <lora:plain:1>"),
              Draw(_BOTH, hr="<sara:alpha:0.2>", n_iter=2)],
    "hires with little memory": [Draw("<sara:alpha:1>", hr="<sara:beta:0.5>", lowvram=True),
                                 Draw(_BOTH, hr="", lowvram=True)],
    "hires with another checkpoint": [Draw("<sara:alpha:1>", hr=_BOTH, hr_checkpoint="two"), Draw("<sara:alpha:1>")],
    "another checkpoint": [Draw(_BOTH), Draw(_BOTH, checkpoint="two"), Draw("", checkpoint="one"),
                           Draw("<sara:alpha:1>"), Draw("<sara:alpha:1>", checkpoint="two"), Draw("")],
    "rewritten": [Draw("<sara:alpha:1>"), Rewrite("alpha", "gamma"), Draw("<sara:alpha:1>"),
                  Rewrite("alpha", "beta"), Draw("<lora:alpha:1>"), Draw("<lora:alpha:1> <lora:plain:1>")],
    "rewritten, with a LoRA on": [Draw(_BOTH), Rewrite("alpha", "beta"), Draw(_BOTH)],
    "the old way": [OldWay(True), Draw("<sara:alpha:0.8>"), Draw(_BOTH), OldWay(False), Draw(f"other words {_BOTH}"),
                    OldWay(True), Draw(f"again others {_BOTH}"), Draw("<sara:alpha:0.8>"), OldWay(False)],
    "activate fails": [Draw("<sara:alpha:1>"), Fail("<sara:alpha:1>"), Draw("<sara:alpha:1>"), Fail(_BOTH)],
    "the UI is reloaded": [Draw("<sara:alpha:1>"), ReloadUI(), Draw("<lora:alpha:1>"), Draw("<sara:alpha:0.5>"),
                           ReloadUI(), ReloadUI(), Draw(_BOTH)],
    "everything off": [Draw(_BOTH), TakeOff(), Draw(f"words {_BOTH}"), TakeOff(), Draw("<sara:alpha:1>")],
    "a missing name": [Draw("<sara:nothing:1>", says="no file of this name"),
                       Draw("<sara:alpha:1> <sara:nothing:1>", says="nothing")],
    "a broken file": [Draw("<sara:broken:1>", says="not a complete .safetensors file"), Draw("<sara:alpha:1>")],
    "no delta": [Draw("<sara:plain_file:1>", says="It looks like a LoRA"), Draw("<sara:alpha:1>")],
    "another family": [Draw("<sara:xl:1>", says="This delta is for SDXL, the model is SD1.5"),
                       Draw("<sara:alpha:1> <lora:xl:1>", says="is for SDXL")],
    "no number": [Draw("<sara:alpha:much>", says="is no number"), Draw("<sara:alpha:nan>", says="strength")],
    "too strong": [Draw("<sara:alpha:3e38> <sara:alpha:3e38>", says="larger than"), Draw("<sara:alpha:1>")],
}  # fmt: skip
# Any of them at random.
_TAGS = st.sampled_from([f"<{kind}:{name}{strength}>" for kind, names in (
    ("sara", ("alpha", "beta", "gamma")), ("lora", ("alpha", "beta", "plain", "other")),
) for name in names for strength in (":1", ":0.8", ":-0.5", ":0:1")])  # fmt: skip
_PROMPTS = st.lists(_TAGS, max_size=3, unique_by=lambda tag: tag.split(":")[1]).map(" ".join)
_CHECKPOINTS = st.sampled_from([None, None, None, "one", "two"])
STEPS = st.one_of(
    st.builds(Draw, _PROMPTS, checkpoint=_CHECKPOINTS),
    st.builds(Draw, _PROMPTS, n_iter=st.integers(1, 2), hr=_PROMPTS, hr_checkpoint=_CHECKPOINTS, lowvram=st.booleans()),
    st.builds(Rewrite, st.sampled_from(["alpha", "beta"]), st.sampled_from(["alpha", "beta", "gamma"])),
    st.sampled_from([Fail("<sara:alpha:1> <lora:plain:1>"), ReloadUI(), TakeOff()]),
)


_SARA = re.compile(r"<sara:[^>]+>")
# Tags that cannot be followed.
_REFUSED = re.compile(r":(nothing|broken|plain_file|xl|alpha:much|alpha:nan|alpha:3e38)\b")


@functools.cache
def _content():
    """Name → the delta or LoRA of the scenarios, for the checkpoint "one"."""
    base = checkpoint(CHECKPOINTS["one"])
    other = delta_of(base, 4)
    named = {name.replace("input_blocks.0.", "input_blocks.70."): entry for name, entry in other.entries.items()}
    return {
        "alpha": delta_of(base, 1),
        "beta": delta_of(base, 2, lambda name: name.endswith("weight") and base[name].dim() > 1),
        "gamma": delta_of(base, 3, lambda name: name.startswith("model.")),
        "xl": SparseDelta(named, {"sara.family": "SDXL"}),
        "plain": lora_of(base, 5),
        "other": lora_of(base, 6),
    }


@functools.cache
def _files():
    """The same as the bytes of files."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "one.safetensors")
        made = {}
        for name, content in _content().items():
            if isinstance(content, dict):
                save_file(content, path, {"ss_network_dim": "2"})
            else:
                content.save(path)
            made[name] = path.read_bytes()
    return made


class Files:
    """The deltas and LoRAs of the scenarios in a WebUI's folders. content: name in a tag → what its file holds"""

    _IN_LORA = ("beta", "plain", "other")

    def __init__(self, webui):
        self._folder, self.content = webui.folder, dict(_content())
        for name, content in _files().items():
            self.path(name).write_bytes(content)
        (webui.folder / "sara" / "plain_file.safetensors").write_bytes(_files()["plain"])
        (webui.folder / "sara" / "broken.safetensors").write_bytes(_files()["alpha"][:999])

    def path(self, name):
        return self._folder / ("Lora" if name in self._IN_LORA else "sara") / f"{name}.safetensors"

    def rewrite(self, step):
        path = self.path(step.name)
        written = path.stat().st_mtime_ns
        path.write_bytes(_files()[step.like])
        self.content[step.name] = _content()[step.like]
        # A clock may be coarser than two writes are apart.
        os.utime(path, ns=(written + 10**9, written + 10**9))


def play(webui, steps, files):
    """Take the steps; AssertionError as soon as a weight is another one than the reference's."""
    lora_in_weights, last = True, ""
    for step in [Draw(""), *steps, Draw("no tags at all"), Draw("", checkpoint="one")]:
        match step:
            case Draw():
                _draw(webui, step, files, lora_in_weights)
                last = step.hr or step.prompt
            case Rewrite():
                files.rewrite(step)
            case OldWay():
                lora_in_weights = not step.on
                webui.shared.opts.lora_functional = step.on
            case Fail():
                webui.failing, last = "sara", step.prompt
                (picture,) = webui.draw(step.prompt)
                assert webui.failing is None, "it was not called"
                _check(webui, picture, webui.base(), _SARA.sub("", step.prompt), files, step, lora_in_weights)
            case ReloadUI():
                webui.reload_ui()
                if "<lora:" not in last:  # the host takes its LoRAs off in the next forward
                    _check(webui, webui.weights(), _loaded(webui), "", files, step)
            case TakeOff():
                webui.host().take_off_everything()
                _check(webui, webui.weights(), _loaded(webui), "", files, step)


def _draw(webui, step, files, lora_in_weights):
    pictures = webui.draw(step.prompt, step.n_iter, step.hr, step.hr_checkpoint, step.checkpoint, step.lowvram)
    said = [line for line in webui.p.comments if step.says and step.says in line]
    assert said if step.says else not webui.p.comments, (step, webui.p.comments)
    passes = [(step.prompt, None)] if step.hr is None else [(step.prompt, None), (step.hr, step.hr_checkpoint)]
    assert len(pictures) == step.n_iter * len(passes)
    for picture, (prompt, chosen) in zip(pictures, passes * step.n_iter):
        followed = " ".join(tag for tag in prompt.split() if not _REFUSED.search(tag))
        _check(webui, picture, webui.base(chosen), followed, files, step, lora_in_weights)


def _loaded(webui):
    """The weights of the checkpoint that was loaded last, which need not be the chosen one."""
    return webui.base(webui.model.sd_checkpoint_info.title)


def _check(webui, found, base, prompt, files, step, lora_in_weights=True):
    wanted = expected(base, prompt, files.content, lora_in_weights, webui.merges_in_float32)
    wrong = differing(found, {name: weight for name, weight in wanted.items() if name in found})
    assert not wrong, (step, wrong)
