"""Adapters that are known by name and cannot be read: what their tensors tell them by, and what to do with them."""

from collections.abc import Iterable
from typing import NamedTuple

from ...errors import DeltaError

_MERGED = (
    "Merge it into the model that it was trained on with {program}, save that model, and make a delta of it and the "
    "model."
)


class Kind(NamedTuple):
    """One kind of adapter.

    called: as its paper and its users do
    marks: one of them is in the names of its tensors, and in no others
    program: what loads it and merges it into a model
    because: why it is not read, a clause
    """

    called: str
    marks: tuple[str, ...]
    program: str = "PEFT (merge_and_unload)"
    because: str = "what it changes is not in the file alone, or computed by PEFT only"

    def refusal(self, name: str) -> DeltaError:
        """The error for a file that has a tensor of this name."""
        return DeltaError(
            f"The file is {self.called} (by its '{name}'), which cannot be converted: {self.because}. "
            + _MERGED.format(program=self.program)
        )


_LYCORIS = "the program it was trained in"
_FACTORS = ("lora_up", "lora_down")
_BY_NOISE_LEVEL = "its strength follows the noise level, and a delta has one strength"

KINDS = (
    Kind("OFT of an early LyCORIS", (".oft_diag",), _LYCORIS, "its versions meant different things by its numbers"),
    Kind("a T-LoRA", (".lambda_layer",), _LYCORIS, _BY_NOISE_LEVEL),
    Kind("an AdaLoRA of PEFT", (".lora_E",)),
    Kind("an OFT of PEFT", (".oft_R", ".oft_r.", ".oft_s")),
    Kind("a BOFT of PEFT", (".boft_",)),
    Kind("a PSOFT of PEFT", (".psoft_",)),
    Kind("an HRA of PEFT", (".hra_",)),
    Kind("a RoAd of PEFT", (".road_",)),
    Kind("a VeRA of PEFT", (".vera_",)),
    Kind("a PVeRA of PEFT", (".pvera_",)),
    Kind("a RandLoRA of PEFT", (".randlora_",)),
    Kind("a VB-LoRA of PEFT", (".vblora_",)),
    Kind("a UniLoRA of PEFT", (".unilora_",)),
    Kind("a TinyLoRA of PEFT", (".tinylora_",)),
    Kind("a FourierFT of PEFT", (".fourierft_",)),
    Kind("a WaveFT of PEFT", (".waveft_",)),
    Kind("a C3A of PEFT", (".c3a_",)),
    Kind("a Bone or MiSS of PEFT", (".bone_", ".miss_")),
    Kind("a DeLoRA of PEFT", (".delora_",)),
    Kind("a HiRA of PEFT", (".hira_",)),
    Kind("a GraLoRA of PEFT", (".gralora_",)),
    Kind("a GLoRA of PEFT", (".glora_",)),
    Kind("a DEFT of PEFT", (".deft_",)),
    Kind("an OSF of PEFT", (".osf_",)),
    Kind("a PEANuT of PEFT", (".peanut_",)),
    Kind("a Lily of PEFT", (".lily_",)),
    Kind("a FRoD of PEFT", (".frod_",)),
    Kind("an AdaMSS of PEFT", (".adamss_",)),
    Kind("a BEFT of PEFT", (".beft_",)),
    Kind("a Poly of PEFT", (".poly_lora_", ".poly_router.")),
    Kind("a LoRA of embeddings (PEFT)", (".lora_embedding_",)),
    Kind("a set of trainable tokens of PEFT", (".trainable_tokens_",)),
    Kind("an X-LoRA of PEFT", ("xlora_",)),
    Kind(
        "a LoRA whose factors are stored with scales",
        tuple(f".{factor}.{scale}" for factor in _FACTORS for scale in ("scale_weight", "weight_scale")),
        "the program that saved it", "how each of its numbers is scaled is not agreed between programs",
    ),
)


def unreadable(names: Iterable[str]) -> DeltaError | None:
    """The error for tensors of these names if one of them is of a known kind that cannot be read; else None."""
    marks = {mark: kind for kind in KINDS for mark in kind.marks}
    found = ((marks[mark], name) for name in names for mark in marks if mark in name)
    return next((kind.refusal(name) for kind, name in found), None)


def are_of_a_known_kind(names: Iterable[str]) -> bool:
    """Whether a tensor of one of these names tells such a kind."""
    return unreadable(names) is not None
