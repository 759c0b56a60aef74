"""Whether a model is the base that a delta was trained on: a few elements of many weights, kept in its metadata.

Of up to 512 weights a record of 13 bytes: 4 of a hash of name and shape, 1 for the dtype, and 4 neighbouring elements
in float16, at a place that the hash chooses. Neighbours cost one page of a file that is mapped rather than loaded.
Elements are compared within the rounding of both dtypes, so that a base is recognised in any precision.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy
import torch

from ..delta import metadata as keys
from ..foreign_text import NAME, plain
from ..names.stored import CHECKPOINT_PREFIX, PREFIX
from ..tensors.elements import gather, has_own_operations
from .quantised import SCALES

BASE, FINE_TUNE, OTHER, UNKNOWN = "base", "fine-tune", "other", "unknown"

_VERSION = "1:"
_RUN = 4
_MOST_WEIGHTS = 512
_RECORD = numpy.dtype([("key", "<u4"), ("dtype", "u1"), ("elements", "<f2", _RUN)])
_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_HALF = torch.finfo(torch.float16)
# Weights of models with a common ancestor point the same way (cosine near 1), of others anywhere (near 0).
_RELATED = 0.5
_ENOUGH_IN_COMMON = 0.5


@dataclass(frozen=True)
class Verdict:
    """What a model is to a delta.

    kind: BASE, FINE_TUNE (of it, or of an ancestor of both), OTHER (another family or a model of its own), UNKNOWN
    agreeing: share of the compared elements that are the same, 0 … 1
    likeness: mean over the weights of the cosine between their elements, −1 … 1
    base_name: the base, as far as the delta says
    """

    kind: str
    agreeing: float = 0.0
    likeness: float = 0.0
    base_name: str = ""

    def text(self) -> str:
        """For people: which of the four it is, and what to expect of the delta then."""
        named = f" ({self._quoted_name()})" if self.base_name else ""
        said = {
            BASE: f"This model is the base that the delta was trained on{named}, in this precision or another.",
            FINE_TUNE: "This model is a fine-tune.",
            OTHER: "This model is of another family, or was trained on its own.",
            UNKNOWN: "Whether the delta was trained on this model is not known: the delta does not say what it was "
            "trained on, or the model is quantised.",
        }
        return f"{said[self.kind]} {self.warning()}".strip()

    def warning(self) -> str:
        """For people: what to expect of the delta on this model; empty if there is nothing to warn of."""
        named = self._quoted_name() or "another model"
        if self.kind == FINE_TUNE:
            return (
                f"This delta was trained on {named}; this model is another fine-tune of it or of its ancestor "
                f"({self.agreeing:.1%} of the compared weights are the same). It may work less well here: lower the "
                "strength, or use the model it was trained on."
            )
        if self.kind == OTHER:
            return (
                f"This delta was trained on {named}, whose weights have nothing to do with this model's. Expect noise: "
                "use the model it was trained on, or a fine-tune of it."
            )
        return ""

    def _quoted_name(self) -> str:
        return f"'{plain(self.base_name, NAME)}'" if self.base_name else ""


def identity_of(weights: Mapping[str, torch.Tensor], name: str = "") -> dict[str, str]:
    """Metadata by which `compare` recognises these weights: a model's, by its names for them, in any floating dtype.

    name: what to call the model, for example its file's name
    Empty if no weight can be compared (all quantised).
    """
    candidates = list(_candidates(weights))
    step = max(1, len(candidates) / _MOST_WEIGHTS)
    chosen = [candidates[int(place * step)] for place in range(min(len(candidates), _MOST_WEIGHTS))]
    records = numpy.array(
        [
            (key, _DTYPES.index(weight.dtype), _elements(weight, start))
            for own, key, start in chosen
            if _is_readable(weight := weights[own]) and not _is_scaled(own, weights)
        ],
        dtype=_RECORD,
    )
    if not len(records):
        return {}
    text = _VERSION + base64.b64encode(numpy.sort(records, order="key").tobytes()).decode()
    return {keys.BASE_IDENTITY: text, **({keys.BASE_NAME: name} if name else {})}


def compare(metadata: Mapping[str, str], weights: Mapping[str, torch.Tensor]) -> Verdict:
    """What the model of these weights is to the delta with this metadata, which may say anything.

    UNKNOWN if the metadata has no identity that can be read, or the weights are quantised.
    """
    records = _records(metadata.get(keys.BASE_IDENTITY, ""))
    if records is None:
        return Verdict(UNKNOWN)
    name = metadata.get(keys.BASE_NAME, "")
    places = {key: (own, start) for own, key, start in _candidates(weights)}
    found = [record for record in records if int(record["key"]) in places]
    if len(found) < _ENOUGH_IN_COMMON * len(records):
        return Verdict(OTHER, base_name=name)
    same, count, cosines = 0, 0, []
    for record in found:
        own, start = places[int(record["key"])]
        weight, then = weights[own], record["elements"].astype(numpy.float64)
        if not _is_readable(weight) or _is_scaled(own, weights) or not numpy.isfinite(then).all():
            continue
        now = _elements(weight, start)
        tolerance = _rounding(now, then, _DTYPES[record["dtype"]], weight.dtype)
        same += int((numpy.isfinite(now) & (numpy.abs(now - then) <= tolerance)).sum())
        count += _RUN
        if then.any():
            cosines.append(_cosine(then, now))
    if not count:
        return Verdict(UNKNOWN, base_name=name)
    # The mean, so that no single layer with large weights decides.
    likeness = sum(cosines) / max(1, len(cosines))
    if same == count:
        return Verdict(BASE, 1.0, likeness, name)
    return Verdict(FINE_TUNE if likeness >= _RELATED else OTHER, same / count, likeness, name)


def _candidates(weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, int, int]]:
    """(name, key, place of the elements) of every weight that says something, in order of names."""
    prefix = _diffusion_prefix(weights)
    for own in sorted(weights):
        weight = weights[own]
        if own.startswith(prefix) and weight.dim() > 1 and weight.numel() >= _RUN:
            said = f"{own.removeprefix(prefix)} {list(weight.shape)}".encode()
            digest = hashlib.blake2b(said, digest_size=12).digest()
            start = int.from_bytes(digest[4:], "little") % (weight.numel() - _RUN + 1)
            yield own, int.from_bytes(digest[:4], "little"), start


def _diffusion_prefix(names: Mapping) -> str:
    """A checkpoint has other models beside the diffusion model, whose names have a prefix then."""
    for prefix in (CHECKPOINT_PREFIX, PREFIX):
        if any(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _is_readable(weight: torch.Tensor) -> bool:
    return weight.dtype in _DTYPES and not has_own_operations(weight) and not weight.is_meta


def _is_scaled(own: str, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether a weight's elements are something else than they say: a scale stands beside it."""
    return any(own.removesuffix("weight") + scale in weights for scale in SCALES)


def _elements(weight: torch.Tensor, start: int) -> numpy.ndarray:
    """The four elements from flat position `start`, float64."""
    codes = weight.detach()
    if codes.element_size() == 1:
        codes = codes.view(torch.uint8)  # bytes, which any torch can gather
    elements = gather(codes, torch.arange(start, start + _RUN, device=codes.device))
    return elements.view(weight.dtype).cpu().double().numpy()


def _cosine(first: numpy.ndarray, second: numpy.ndarray) -> float:
    lengths = numpy.linalg.norm(first) * numpy.linalg.norm(second)
    return float(first @ second / lengths) if 0 < lengths < math.inf else 0.0


def _rounding(now: numpy.ndarray, then: numpy.ndarray, *dtypes: torch.dtype) -> numpy.ndarray:
    """How far the same number may lie apart once it was rounded to these dtypes and to the record's float16."""
    precisions = [_HALF, *map(torch.finfo, dtypes)]
    relative = sum(precision.eps for precision in precisions) / 2
    floor = sum(precision.smallest_normal * precision.eps for precision in precisions)
    return 1.01 * relative * numpy.maximum(numpy.abs(now), numpy.abs(then)) + floor


def _records(text: str) -> numpy.ndarray | None:
    """The records of an identity, None unless it is one of this version and of a possible length."""
    longest = len(_VERSION) + 4 * math.ceil(_MOST_WEIGHTS * _RECORD.itemsize / 3)
    if not text.startswith(_VERSION) or len(text) > longest:
        return None
    try:
        content = base64.b64decode(text.removeprefix(_VERSION), validate=True)
    except ValueError:
        return None
    if not content or len(content) % _RECORD.itemsize:
        return None
    records = numpy.frombuffer(content, dtype=_RECORD)
    return records if (records["dtype"] < len(_DTYPES)).all() else None
