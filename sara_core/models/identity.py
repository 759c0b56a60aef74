"""Whether a model is the base that a delta was trained on: a few elements of many weights, kept in its metadata.

Of up to 512 weights a record: 4 bytes of a hash of name and shape, 1 for the dtype, and 4 neighbouring elements in
float16, at a place that the hash chooses; of quantised weights also how far rounding may have moved them. Neighbours
cost one page of a file that is mapped rather than loaded. Elements are compared within the rounding of both
precisions, so that a base is recognised in any of eight bits and more.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping

import numpy
import torch

from ..delta import metadata as keys
from ..names.stored import CHECKPOINT_PREFIX, PREFIX
from .samples import DTYPES, RUN, QuantisedWeight, Sample, floor, named_precision, precision_of, sampler
from .verdict import BASE, EITHER, FINE_TUNE, OTHER, UNKNOWN, Verdict

Weights = Mapping[str, torch.Tensor | QuantisedWeight]

_MOST_WEIGHTS = 512
# Older programs read the first version, so the second has only what the first cannot say: quantised weights.
_PLAIN, _QUANTISED = "1:", "2:"
_RECORDS = {
    _PLAIN: numpy.dtype([("key", "<u4"), ("dtype", "u1"), ("elements", "<f2", RUN)]),
    _QUANTISED: numpy.dtype([("key", "<u4"), ("dtype", "u1"), ("error", "<f4"), ("elements", "<f2", RUN)]),
}
# In place of a dtype, where so few bits are left that no bound tells anything.
_FEW_BITS = len(DTYPES)
_HALF = torch.float16
# Weights of models with a common ancestor point the same way (cosine near 1), of others anywhere (near 0).
_RELATED = 0.5
# Four bits turn four elements by some 6 degrees, two bits by some 25; a fine-tune that turns them further shows.
_HARDLY_TURNED = 0.85
_ENOUGH_IN_COMMON = 0.5
# Two ways to the same coarse numbers, one of them through bf16, end at neighbours for three elements in a hundred.
_ROUNDED_TWICE = 0.05
# Many a program divides by the scale in bf16.
_SLACK_OF_SCALES = 1.1


def identity_of(weights: Weights, name: str = "") -> dict[str, str]:
    """Metadata by which `compare` recognises these weights: a model's, by its names for them, in any precision.

    name: what to call the model, for example its file's name
    Empty if no weight can be read.
    """
    candidates = list(_candidates(weights))
    step = max(1, len(candidates) / _MOST_WEIGHTS)
    chosen = [candidates[int(place * step)] for place in range(min(len(candidates), _MOST_WEIGHTS))]
    samples = [(key, read(start)) for own, key, start in chosen if (read := sampler(own, weights)) is not None]
    if not samples:
        return {}
    said = {keys.BASE_IDENTITY: _written(samples), keys.BASE_PRECISION: _precision(candidates, weights)}
    return said | ({keys.BASE_NAME: name} if name else {})


def compare(metadata: Mapping[str, str], weights: Weights) -> Verdict:
    """What the model of these weights is to the delta with this metadata, which may say anything.

    UNKNOWN if the metadata has no identity that can be read, or the weights are packed.
    """
    then = _read(metadata.get(keys.BASE_IDENTITY, ""))
    candidates = list(_candidates(weights))
    about = {
        "base_name": metadata.get(keys.BASE_NAME, ""),
        "trained_in": metadata.get(keys.BASE_PRECISION, "") or _usual_precision(then or []),
        "precision": _precision(candidates, weights),
    }
    if then is None:
        return Verdict(UNKNOWN, **about)
    places = {key: (sampler(own, weights), start) for own, key, start in candidates}
    found = [(sample, *places[key]) for key, sample in then if key in places]
    if len(found) < _ENOUGH_IN_COMMON * len(then):
        # The shape of a packed weight is not that of the weight: it may be any of those that were not found.
        packed = sum(read is None for read, _ in places.values())
        return Verdict(UNKNOWN if len(found) + packed >= _ENOUGH_IN_COMMON * len(then) else OTHER, **about)
    return _Comparison(
        [(sample, read(start)) for sample, read, start in found if read and numpy.isfinite(sample.values).all()]
    ).verdict(about)


class _Comparison:
    """What pairs of samples, of the base and of a model, have in common."""

    def __init__(self, pairs: list[tuple[Sample, Sample]]):
        self.compared = len(pairs)
        bounded = [pair for pair in pairs if None not in (pair[0].rounding, pair[1].rounding)]
        self.coarse = len(pairs) - len(bounded)
        self.elements = RUN * len(bounded)
        self.alike = self.neighbours = self.on_one_grid = 0
        for then, now in bounded:
            distance = numpy.abs(now.values - then.values)
            close = numpy.isfinite(now.values) & (distance <= _tolerance(then, now, then.rounding, now.rounding))
            self.alike += int(close.sum())
            if then.shares_its_grid_with(now):
                self.on_one_grid += RUN
                self.neighbours += int((close & (distance > _tolerance(then, now))).sum())
        # The mean, so that no single layer with large weights decides.
        cosines = [_cosine(then.values, now.values) for then, now in pairs if _says_where(then, now)]
        self.likeness = sum(cosines) / max(1, len(cosines))

    def verdict(self, about: Mapping[str, str]) -> Verdict:
        if not self.compared:
            return Verdict(UNKNOWN, **about)
        same = self.alike - (self.neighbours if self.neighbours > _ROUNDED_TWICE * self.on_one_grid else 0)
        agreeing = same / max(1, self.elements)
        if same == self.elements and not self.coarse:
            kind = BASE
        elif same == self.elements and self.likeness >= _HARDLY_TURNED:
            kind = EITHER
        else:
            kind = FINE_TUNE if self.likeness >= _RELATED else OTHER
        return Verdict(kind, agreeing, self.likeness, **about)


def _candidates(weights: Weights) -> Iterator[tuple[str, int, int]]:
    """(name, key, place of the elements) of every weight that says something, in order of names."""
    prefix = _diffusion_prefix(weights)
    for own in sorted(weights):
        shape = weights[own].shape
        if own.startswith(prefix) and len(shape) > 1 and shape.numel() >= RUN:
            said = f"{own.removeprefix(prefix)} {list(shape)}".encode()
            digest = hashlib.blake2b(said, digest_size=12).digest()
            start = int.from_bytes(digest[4:], "little") % (shape.numel() - RUN + 1)
            yield own, int.from_bytes(digest[:4], "little"), start


def _diffusion_prefix(names: Mapping) -> str:
    """A checkpoint has other models beside the diffusion model, whose names have a prefix then."""
    for prefix in (CHECKPOINT_PREFIX, PREFIX):
        if any(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _cosine(first: numpy.ndarray, second: numpy.ndarray) -> float:
    lengths = numpy.linalg.norm(first) * numpy.linalg.norm(second)
    return float(first @ second / lengths) if 0 < lengths < math.inf else 0.0


def _says_where(then: Sample, now: Sample) -> bool:
    """Whether a direction can be told from both: few bits may have made zeros of four small elements."""
    return bool(then.values.any()) and (now.rounding is not None or bool(now.values.any()))


def _tolerance(then: Sample, now: Sample, *roundings: torch.dtype) -> numpy.ndarray:
    """How far the same number may lie apart once it was rounded to these dtypes and to the record's float16."""
    relative = sum(torch.finfo(dtype).eps for dtype in (_HALF, *roundings)) / 2
    absolute = floor(_HALF) + (then.error + now.error if roundings else 0)
    slack = 1.01 if then.is_plain and now.is_plain else _SLACK_OF_SCALES
    return slack * relative * numpy.maximum(numpy.abs(now.values), numpy.abs(then.values)) + absolute


def _precision(candidates: list[tuple[str, int, int]], weights: Weights) -> str:
    return precision_of([own for own, _, _ in candidates], weights)


def _usual_precision(samples: list[tuple[int, Sample]]) -> str:
    """The precision of most of these, as far as an identity of the first version says it."""
    names = [named_precision(sample.rounding) for _, sample in samples if sample.rounding is not None]
    return max(names, key=names.count) if names else ""


def _written(samples: list[tuple[int, Sample]]) -> str:
    """The identity's text."""
    plain = all(sample.is_plain for _, sample in samples)
    version = _PLAIN if plain else _QUANTISED
    records = numpy.zeros(len(samples), _RECORDS[version])
    for record, (key, sample) in zip(records, samples):
        record["key"], record["elements"] = key, sample.values
        record["dtype"] = _FEW_BITS if sample.rounding is None else DTYPES.index(sample.rounding)
        if not plain:
            record["error"] = sample.error
    return version + base64.b64encode(numpy.sort(records, order="key").tobytes()).decode()


def _read(text: str) -> list[tuple[int, Sample]] | None:
    """Keys and samples of an identity's text, None unless it is one of a known version and of a possible length."""
    form = _RECORDS.get(text[:2])
    if form is None or len(text) > 2 + 4 * math.ceil(_MOST_WEIGHTS * form.itemsize / 3):
        return None
    try:
        content = base64.b64decode(text[2:], validate=True)
    except ValueError:
        return None
    if not content or len(content) % form.itemsize:
        return None
    samples = [_sample(record) for record in numpy.frombuffer(content, dtype=form)]
    return None if None in samples else samples


def _sample(record: numpy.void) -> tuple[int, Sample] | None:
    """Key and sample of a record, None if it has numbers that this version does not know."""
    number, has_error = int(record["dtype"]), "error" in record.dtype.names
    if number > _FEW_BITS - (not has_error):
        return None
    rounding = None if number == _FEW_BITS else DTYPES[number]
    error = float(record["error"]) if has_error else floor(rounding)
    if not 0 <= error < math.inf:
        return None
    return int(record["key"]), Sample(record["elements"].astype(numpy.float64), rounding, error)
