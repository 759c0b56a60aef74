"""What is promised of speed, and of which measurement each figure is."""

from dataclasses import dataclass

# Of one training beside PEFT's LoRA of rank 25 on the attention projections.
STEP, GRADIENT, UPDATE = "step ÷ LoRA", "products, share", "update, share"
WORDS = {
    STEP: "step ÷ PEFT LoRA r25 attention",
    GRADIENT: "gradient of the elements, share of a step",
    UPDATE: "optimizer and writing back, share of a step",
}


@dataclass(frozen=True)
class Training:
    """One training that is measured beside the LoRA, and what is promised of it: quantity (of WORDS) → at most."""

    model: str
    elements: int
    latent: int
    targets: dict[str, float | None]
    batch: int = 1
    dtype: str = "float32"
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """For the table, e.g. "sd15, 5 M 32×32, fp32"."""
        dtype = {"float32": "fp32", "bfloat16": "bf16"}[self.dtype]
        more = (f", batch {self.batch}" if self.batch > 1 else "") + (", checkpointing" if self.checkpointing else "")
        return f"{self.model}, {self.elements / 1e6:g} M {self.latent}×{self.latent}, {dtype}{more}"

    def spec(self, method: str) -> dict:
        """For benchmarks.lib.step_run.Trainee."""
        return {
            "model": self.model, "elements": self.elements, "latent": self.latent, "batch": self.batch,
            "dtype": self.dtype, "checkpointing": self.checkpointing, "method": method, "device": "cpu",
        }  # fmt: skip


FEW, MANY = 5_000_000, 50_000_000
BF16 = {"dtype": "bfloat16", "checkpointing": True}
# In the order of what says most: a run that is ended early has these.
TRAININGS = (
    Training("sd15", FEW, 32, {STEP: 0.90, GRADIENT: None, UPDATE: 0.03}),
    Training("sd15", MANY, 32, {STEP: 1.10, GRADIENT: None, UPDATE: 0.08}),
    Training("sdxl", 15_000_000, 64, {STEP: 0.95, GRADIENT: 0.05}, **BF16),
    Training("sd15", FEW, 64, {STEP: 0.90, GRADIENT: None}),
    Training("sd15", FEW, 32, {STEP: 0.90, GRADIENT: None}, batch=4),
    Training("sd15", MANY, 64, {STEP: 1.10, GRADIENT: None}),
    Training("sd15", MANY, 32, {STEP: 1.10, GRADIENT: None}, batch=4),
    Training("flux-pair", 30_000_000, 64, {STEP: None, GRADIENT: 0.12}, **BF16),
)
# Where time or memory is short: layers of the same shapes, at the same densities.
PART = "sd15-part"
QUICK = (
    Training(PART, 600_000, 32, {STEP: 0.90, GRADIENT: None, UPDATE: 0.03}),
    Training(PART, 6_000_000, 32, {STEP: 1.10, GRADIENT: None, UPDATE: 0.08}),
    Training(PART, 600_000, 64, {STEP: 0.90, GRADIENT: None}),
    Training(PART, 600_000, 32, {STEP: 0.95, GRADIENT: 0.05}, **BF16),
)
SMALL = (
    Training("small", 30_000, 16, {STEP: 0.90, GRADIENT: None, UPDATE: 0.03}),
    Training("small", 30_000, 16, {STEP: 0.95, GRADIENT: 0.05}, **BF16),
    Training("flux-small", 30_000, 16, {STEP: None, GRADIENT: 0.12}, **BF16),
)


@dataclass(frozen=True)
class Reported:
    """A figure that another benchmark's report has.

    part: which part of `benchmarks.speed` measures it; path: keys to the figure in that report, of which one that
    begins with "name=" finds the dict of that name in a list
    """

    part: str
    name: str
    path: tuple[str, ...]
    target: float | None


def _apply(case: str, figure: str, words: str, target: float) -> Reported:
    name = f"{words} {case} ÷ core's LoRA r16"
    return Reported("apply", name, ("ratios", f"name=delta {case}: {figure} / LoRA r16", "spread", "0"), target)


REPORTED = (
    _apply("50 M, all", "patch", "applying", 0.8),
    _apply("5 M, all", "patch", "applying", 0.35),
    _apply("50 M, all", "other strength", "another strength,", 0.5),
    _apply("5 M, all", "other strength", "another strength,", 0.15),
    *(
        _apply(case, figure, words, target)
        for figure, words in (("other file", "another file,"), ("file of before", "back to the file of before,"))
        for case, target in (("50 M, all", 0.5), ("5 M, all", 0.15))
    ),
    *(
        Reported(
            "apply", f"bytes an element while on, {case}",
            ("ratios", f"name=delta {case}: bytes an element while on", "spread", "0"), 6.0,
        )
        for case in ("50 M, all", "5 M, all")
    ),
    *(
        Reported(
            "files", f"loading 50 M, bf16, {density}, from the page cache ÷ plain safetensors",
            ("ratios", f"50,000,000 elements at {density}", "bf16", "load, cached", "0"), 1.5,
        )
        for density in ("0.6%", "6.0%")
    ),
    *(
        Reported("files", f"bytes a change in a file, bf16, {density}", ("sizes", density, "bf16"), 3.1)
        for density in ("0.6%", "6.0%")
    ),
    Reported("startup", "start of ComfyUI, the pack's part, s", ("summary", "cpu", "median"), 0.3),
)  # fmt: skip
PRESSED = Reported("comfyui", "from pressing Run to the second step ÷ a later step", ("pressed",), 3.0)
