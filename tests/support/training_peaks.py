"""What trainings in the real node were estimated to take and what they took, in a process of their own.

    python -m tests.support.training_peaks FAMILY:BATCH:LATENT:CHECKPOINTING …    e.g. "SD1.5:2:4,32,32:on"

Prints one JSON object per training, sizes in bytes. Linux only. To be run with MALLOC_MMAP_THRESHOLD_=65536: otherwise
the C library keeps much of what training frees, between blocks that are in use, and the process holds more than it
needs.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

# Before the host, which has a folder of the same name, is on the path.
from benchmarks.lib.memory import give_back_freed_memory, memory, reset_high_water_mark
from benchmarks.train_.run import make_resident
from devtools.comfyui.in_process import InProcessHost
from devtools.comfyui.install import prepare
from tests.support.family_models import FAMILIES

STEPS = 2  # the first finds out which blocks need checkpointing, and has no moments yet
WARM_UP = "SD1.5:1:4,8,8:on"  # loads the libraries, which stay


def recorded_estimates(host: InProcessHost) -> list:
    """Every estimate that a run of SaRA Train makes, from now on."""
    session = host.pack_module("nodes.host.training.session")
    estimate, made = session.estimate, []

    def recording(*args):
        made.append(estimate(*args))
        return made[-1]

    session.estimate = recording
    return made


def measure(host: InProcessHost, estimates: list, specification: str) -> dict:
    import comfy.model_management
    import torch

    name, batch, latent, checkpointing = specification.split(":")
    family = dataclasses.replace(FAMILIES[name], latent=tuple(map(int, latent.split(","))))
    with torch.inference_mode():
        model = family.model()
    make_resident(model)
    latents = [{"samples": latent} for latent in family.latents(int(batch))]
    captions = [[caption] for caption in family.captions(int(batch))]
    give_back_freed_memory()
    reset_high_water_mark()
    loaded = memory("VmRSS")
    host.execute(
        "SaRATrain", model=model, latents=latents, positive=captions, steps=STEPS, batch_size=int(batch),
        learning_rate=1e-4, gradient_checkpointing=checkpointing == "on",
    )
    growth = memory("VmHWM") - loaded
    comfy.model_management.unload_all_models()
    return {"run": specification, **dataclasses.asdict(estimates[-1]), "growth": round(growth * 2**20)}


def main(specifications: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-peaks-") as base:
        host = InProcessHost(prepare(), Path(base))
        estimates = recorded_estimates(host)
        measure(host, estimates, WARM_UP)
        for specification in specifications:
            print(json.dumps(measure(host, estimates, specification)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
