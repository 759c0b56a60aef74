"""What the UNet is in each pass of a picture with tags: hires with other weights, batches, img2img."""

from collections.abc import Iterator
from itertools import groupby

from . import inputs
from .asked import Asked

STRONG, WEAK = (f"a cat <sara:{inputs.FITTING}:{strength}>" for strength in (0.8, 0.3))
HIRES = {
    "enable_hr": True, "hr_scale": 1, "hr_upscaler": "None", "hr_second_pass_steps": 2, "denoising_strength": 0.7,
    "hr_additional_modules": ["Use same choices"], "hr_force": True,
}  # fmt: skip
BATCH = {"batch_size": 2, "n_iter": 2}


def claims(asked: Asked) -> Iterator[tuple[str, str]]:
    """Claim → what is wrong, or nothing."""
    strong, weak, plain = (_in_turn(asked.passes(prompt)[0]) for prompt in (STRONG, WEAK, "a cat"))
    wrong = "" if len({*strong, *weak, *plain}) == 3 else "no three UNets at two strengths and none"
    hires, _ = asked.passes(STRONG, **HIRES, **{asked.webui.kind.second_prompt: WEAK})
    yield "hires", wrong or _other(_in_turn(hires), strong + weak)
    batch, pictures = asked.passes(STRONG, **BATCH)
    few = f"{len(pictures)} pictures" if len(pictures) < BATCH["batch_size"] * BATCH["n_iter"] else ""
    yield "batch", wrong or few or _other(_in_turn(batch), strong)
    again, _ = asked.passes(STRONG, "img2img", init_images=pictures[-1:], denoising_strength=0.7, steps=4)
    yield "img2img", wrong or _other(_in_turn(again), strong)
    asked.draw("a cat")  # what comes next begins without a tag


def _in_turn(passes: list[str]) -> list[str]:
    return [unet for unet, _ in groupby(passes)]


def _other(found: list[str], wanted: list[str]) -> str:
    return "" if found == wanted else f"the UNet was {found} in turn, not {wanted}"
