"""Base identity of quantised weights: what eight bits still tell, what fewer do not, and how it is written."""

import base64
import hashlib
import struct

import pytest
import torch

from sara_core.delta.metadata import BASE_IDENTITY, BASE_PRECISION
from sara_core.models import identity as identity_module
from sara_core.models.identity import BASE, EITHER, FINE_TUNE, OTHER, UNKNOWN, compare, identity_of
from sara_core.models.samples import RUN, QuantisedWeight, Sample
from tests.core.models.test_identity import cast, model, tuned

E4M3 = torch.float8_e4m3fn


def scaled(weights, beside="weight_scale", numbers=1):
    """In float8, with the scale of each matrix beside it."""
    result = dict(weights)
    for name in [name for name, weight in weights.items() if weight.dim() > 1]:
        scale = weights[name].abs().max() / 448
        result[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        result[name.replace("weight", beside)] = scale.expand(numbers) if numbers > 1 else scale
    return result


@pytest.mark.parametrize("beside", ["scale_weight", "weight_scale"])
def test_float8_with_a_scale_is_the_base_and_a_fine_tune_of_it_is_not(beside):
    present = scaled(model(), beside)
    for first, second in ((model(), present), (present, model()), (present, present)):
        assert compare(identity_of(first), second).kind == BASE
    assert compare(identity_of(model()), scaled(tuned(model()), beside)).kind == FINE_TUNE
    assert compare(identity_of(present), scaled(model(seed=1), beside)).kind == OTHER
    assert identity_of(present)[BASE_PRECISION] == "fp8 scaled"


def test_float8_with_a_scale_for_each_block_is_unknown():
    weights = scaled(model(), numbers=3)
    assert compare(identity_of(model()), weights).kind == UNKNOWN and identity_of(weights) == {}


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_float8_with_a_scale_that_is_none_is_unknown(scale):
    broken = {name: weight if weight.dim() else torch.tensor(scale) for name, weight in scaled(model()).items()}
    assert compare(identity_of(model()), broken).kind == UNKNOWN


def test_one_coarse_grid_tells_a_fine_tune_that_rounding_could_have_made():
    weights = cast(model(layers=200), torch.float8_e4m3fn)
    step = {name: weight.view(torch.uint8) for name, weight in weights.items()}
    near = {name: (weight + (weight > 0)).view(torch.float8_e4m3fn) for name, weight in step.items()}
    assert compare(identity_of(weights), near).kind == FINE_TUNE


def test_the_same_coarse_grid_by_way_of_bf16_is_still_the_base():
    once, twice = (cast(model(layers=200), *dtypes) for dtypes in ([E4M3], [torch.bfloat16, E4M3]))
    assert any((once[name].float() != twice[name].float()).any() for name in once)
    assert compare(identity_of(once), twice).kind == BASE


def packed(weights, precision="4 bits"):
    """As weights that a host can dequantise, with what it says of their elements."""

    def few(weight):
        def elements(start):
            values = weight.flatten()[start : start + RUN]
            step = weight.abs().max() / 7
            return Sample((values / step).round().mul(step).double().numpy(), None, 0.0)

        return QuantisedWeight(weight.shape, precision, elements)

    return {name: few(weight) if weight.dim() > 1 else weight for name, weight in weights.items()}


@pytest.mark.parametrize("trained, present", [(packed, dict), (dict, packed), (packed, packed)])
def test_few_bits_tell_the_base_or_a_fine_tune_of_it_and_no_more(trained, present):
    identity = identity_of(trained(model()))
    verdict = compare(identity, present(model()))
    assert verdict.kind == EITHER and verdict.warning() == "" and "too few bits" in verdict.text()
    assert compare(identity, present(tuned(model()))).kind == EITHER
    assert compare(identity, present(model(seed=1))).kind == OTHER
    far = compare(identity, present(tuned(model(), 1.0)))
    assert far.kind == FINE_TUNE and "%" not in far.warning()


def test_packed_weights_under_other_shapes_are_unknown_and_not_another_model():
    halves = {name: torch.zeros(w.shape[0], 8, dtype=torch.uint8) for name, w in model().items() if w.dim() > 1}
    assert compare(identity_of(model()), halves).kind == UNKNOWN
    assert compare(identity_of(model()), {**model(seed=1, width=32), **dict(list(halves.items())[:3])}).kind == OTHER


def test_the_precision_is_that_of_most_quantised_weights():
    weights = model()
    few = dict(list(packed(weights, "int4").items())[:6])
    other = {name: weight.to(torch.float8_e5m2) for name, weight in list(weights.items())[6:10]}
    assert identity_of(weights | few)[BASE_PRECISION] == "int4"
    assert identity_of(weights | few | other)[BASE_PRECISION] == "int4"
    assert identity_of(cast(weights, torch.bfloat16))[BASE_PRECISION] == "bf16"


@pytest.mark.parametrize(
    "trained, present, said",
    [(dict, scaled, "on fp32 weights, this model has fp8 scaled: that works"), (packed, dict, "on 4 bits weights"),
     (scaled, scaled, ""), (dict, lambda w: cast(w, torch.bfloat16), "")],
)  # fmt: skip
def test_another_precision_is_a_note_where_one_of_them_is_quantised(trained, present, said):
    verdict = compare(identity_of(trained(model())), present(model()))
    assert verdict.warning() == "" and said in verdict.note() and bool(verdict.note()) == bool(said)
    assert verdict.note() in verdict.text()


def test_older_deltas_say_their_precision_by_their_records():
    older = {BASE_IDENTITY: identity_of(cast(model(), torch.float16))[BASE_IDENTITY]}
    assert "on fp16 weights" in compare(older, scaled(model())).note()


@pytest.mark.parametrize("dtype, error", [(7, 0.0), (1, -1.0), (1, float("nan")), (1, float("inf"))])
def test_records_that_this_version_does_not_know_make_an_identity_unreadable(dtype, error):
    record = struct.pack("<IBf4e", 1, dtype, error, 1, 2, 3, 4)
    assert identity_module._read("2:" + base64.b64encode(record).decode()) is None
    assert identity_module._read("2:" + base64.b64encode(struct.pack("<IBf4e", 1, 1, 0, 1, 2, 3, 4)).decode())


def test_an_identity_of_quantised_weights_is_written_as_the_page_says():
    weights = {"a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "a.weight_scale": torch.tensor(0.5)}
    digest = hashlib.blake2b(b"a.weight [2, 2]", digest_size=12).digest()
    record = struct.pack("<4sBf4e", digest[:4], 4, 2**-10, 0.5, 0.5, 0.5, 0.5)
    assert identity_of(weights)[BASE_IDENTITY] == "2:" + base64.b64encode(record).decode()
    few = struct.pack("<4sBf4e", digest[:4], 6, 0, 1, 1, 1, 1)
    assert identity_of(packed({"a.weight": torch.ones(2, 2)}))[BASE_IDENTITY] == "2:" + base64.b64encode(few).decode()
