"""What a run takes of memory and time, by arithmetic, so that it is known before it starts.

Of a training: the weights, what the process is without them, activations and 28 bytes for each trained element. The
constants are rounded up from the tables of docs/performance.md, on two cores that nothing else uses.
"""

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.speed_.targets import Training

MIB = 1 << 20
PROCESS_MIB = 800
ELEMENT_BYTES = 28
# Of the largest of them, SDXL's.
LORA_PARAMETERS = 36e6
# Model → its parameters, and the seconds of a step at 32×32 and batch 1.
MODELS = {
    "sd15": (859.5e6, 4.5), "sdxl": (2567e6, 3.0), "flux-pair": (550e6, 2.5), "sd15-part": (90e6, 0.7),
    "small": (16e6, 0.2), "flux-small": (6e6, 0.2),
}  # fmt: skip
# Each training is made, and takes one step that does not count.
PREPARING_SECONDS = 40
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
# Part → memory in MiB and minutes for each revision, with SD1.5's UNet in fp32 or 50 M changes.
PARTS = {"comfyui": (6_500, 3), "apply": (8_000, 12), "files": (2_500, 8), "startup": (1_000, 3)}
# What the whole may take.
MOST_MIB = 16e9 / MIB


class Needs(NamedTuple):
    mib: float
    minutes: float

    def text(self) -> str:
        return f"{self.mib * MIB / 1e9:.1f} GB of memory, about {max(1, round(self.minutes))} minutes"


def of_training(training: Training, sides: int, repetitions: int) -> Needs:
    """sides: how many processes train it at once, the LoRA's among them"""
    parameters, seconds = MODELS[training.model]
    relative = (training.latent / 32) ** 2 * training.batch
    activations = 200 + 225 * relative if training.checkpointing else 400 + 290 * relative
    mib = parameters * DTYPE_BYTES[training.dtype] / MIB + PROCESS_MIB + activations
    elements = training.elements * (sides - 1) + LORA_PARAMETERS
    each = PREPARING_SECONDS + (repetitions + 1) * seconds * relative
    return Needs(sides * mib + elements * ELEMENT_BYTES / MIB, sides * each / 60)


def of_parts(parts: Iterable[str], revisions: int) -> list[Needs]:
    """Of every part but the steps."""
    return [Needs(PARTS[part][0], PARTS[part][1] * revisions) for part in parts if part in PARTS]


def together(needs: Iterable[Needs]) -> Needs:
    """Of what runs one after the other."""
    needs = list(needs)
    return Needs(max(one.mib for one in needs), sum(one.minutes for one in needs))
