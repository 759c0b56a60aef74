"""How much a file may ask for, in numbers: what is allowed at a bound, and what one more is called."""

import pytest
import torch

from sara_core.conversion.adapters.alpha import Alpha, bounded
from sara_core.conversion.adapters.oft import boft, oft
from sara_core.conversion.adapters.peft_settings import Alphas
from sara_core.conversion.adapters.remainder import remainder
from sara_core.conversion.adapters.text import TextBase
from sara_core.conversion.foreign_file import _named_tensors
from sara_core.conversion.request import ReadRequest
from sara_core.conversion.result import Conversion
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError
from sara_core.files.source import Source
from sara_core.models.base import Base


def test_ranks():
    assert bounded(1) == 1 and bounded(4096) == 4096
    for rank in (-1, 0, 4097):
        with pytest.raises(IndexError):
            bounded(rank)


@pytest.mark.parametrize("alpha, rank, scale", [
    (Alpha(8.0), 4, 2.0), (Alpha(8.0), None, 1.0), (Alpha(None), 4, 1.0), (Alpha(8.0, rank=2), None, 4.0),
    (Alpha(8.0, rank=2), 4, 2.0), (Alpha(8.0, by_root=True), 4, 4.0), (Alpha(8.0, 16, True), None, 2.0),
    (Alpha(0.0), 4, 0.0),
], ids=str)  # fmt: skip
def test_scales(alpha, rank, scale):
    assert alpha.scale(rank) == scale


def settings(patterns):
    return {"r": 4, "lora_alpha": 8, "alpha_pattern": patterns}


ALLOWED = {
    "4096 names": {f"layer{place}": 2 for place in range(4096)},
    "16 choices": {f"layer{place}.*": 2 for place in range(16)},
    "3 in one": {"a.*b+c?": 2},
    "256 letters": {"a" * 256: 2},
}
REFUSED = {
    "4097 names": ({f"layer{place}": 2 for place in range(4097)}, "too many patterns"),
    "17 choices": ({f"layer{place}.*": 2 for place in range(17)}, "too many patterns"),
    "4 in one": ({"a.*b+c?d*": 2}, "cannot be used .it is too intricate"),
    "257 letters": ({"a" * 257: 2}, f"The pattern '{'a' * 256}' in .* cannot be used .it is too intricate"),
    "a group repeated": ({"(ab)+": 2}, "too intricate"),
    "looking ahead": ({"a(?=b)": 2}, "too intricate"),
    "words": ({"a": "2"}, "no numbers in their alpha_pattern"),
    "a switch": ({"a": True}, "no numbers in their alpha_pattern"),
    "a list": (["a"], "no numbers in their alpha_pattern"),
}


@pytest.mark.parametrize("patterns", ALLOWED.values(), ids=ALLOWED)
def test_patterns_that_are_matched(patterns):
    assert Alphas(settings(patterns)).of("elsewhere") == Alpha(8.0, 4)


@pytest.mark.parametrize("patterns, words", REFUSED.values(), ids=REFUSED)
def test_patterns_that_could_take_long_are_refused(patterns, words):
    with pytest.raises(DeltaError, match=words):
        Alphas(settings(patterns))


def test_names_that_are_matched():
    alphas = Alphas(settings({"b": 2, "block.a": 3}))
    assert [alphas.of(name).value for name in ("x.b", "b", "xb", "unet.block.a", "base_model.model.b", "b.x")] == [
        2, 2, 8, 3, 2, 8
    ]  # fmt: skip
    assert alphas.of("a" * 256).value == 8
    with pytest.raises(DeltaError, match="has too long a name"):
        alphas.of("a" * 257)
    assert Alphas({"r": 4, "lora_alpha": 8}).of("a" * 257).value == 8


@pytest.mark.parametrize("steps, is_allowed", [(31, True), (32, False)])
def test_steps_of_a_butterfly(steps, is_allowed):
    """More than 31 would ask for rows further apart than any weight has; the weight here has too few for two."""
    blocks, weight = torch.zeros(steps, 1, 2, 2), torch.ones(2, 3)
    with pytest.raises(RuntimeError if is_allowed else IndexError):
        boft(blocks, Alpha(), weight, None)


@pytest.mark.parametrize("size", [0.9e8, 1.1e8])
def test_blocks_of_a_rotation(size):
    blocks, weight = torch.zeros(1, 2, 2), torch.eye(2)
    blocks[0, 0, 1] = size
    if size > 1e8:
        with pytest.raises(torch.linalg.LinAlgError):
            oft(blocks, Alpha(), weight, None)
    else:  # almost a half turn
        torch.testing.assert_close(oft(blocks, Alpha(), weight, None), -2 * torch.eye(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype, place", [(torch.int16, -1), (torch.int32, 65535), (torch.int64, 65535)])
def test_positions_of_a_remainder_count_from_zero_to_65535(dtype, place):
    tensors = {
        "remainder_indices": torch.tensor([[1], [place]], dtype=dtype),
        "remainder_values": torch.tensor([0.5], dtype=torch.bfloat16),
        "remainder_size": torch.tensor([2, 65536], dtype=torch.int64),
    }
    found = remainder("a", tensors, (2, 65536))
    assert found.dtype == torch.float32 and found.nonzero().tolist() == [[1, 65535]] and float(found.sum()) == 0.5
    with pytest.raises(DeltaError, match="sparse remainder of the file's module 'a' is damaged"):
        remainder("a", tensors, (2, 65535))


@pytest.mark.parametrize("sides, is_placed", [((1 << 14, 1 << 14), True), ((1 << 14, (1 << 14) + 1), False)])
def test_layers_of_text_encoders_that_factors_tell(sides, is_placed):
    module, (rows, columns) = "lora_te_text_model_encoder_layers_0_mlp_fc1", sides
    source = Source("lora", tensors={"up": torch.empty(rows, 1), "down": torch.empty(1, columns)})
    base = Base(Source("base", tensors={"model.diffusion_model.a.weight": torch.zeros(2, 2)}))
    base.family = "SD1.5"
    text = TextBase(base, source)
    place = text.place(module, {"up": "up", "down": "down"})
    assert (place is not None) == is_placed
    if is_placed:
        assert text.shapes[place.name] == sides and text.shapes[place.name.replace("weight", "bias")] == sides[:1]
        with pytest.raises(DeltaError, match="has no text encoders. Give the whole checkpoint"):
            text.weight(place.name)


def nested(depth):
    content = {"a.weight": torch.ones(2)}
    for _ in range(depth - 1):
        content = {"model": content}
    return content


def test_tables_in_tables_are_looked_into_four_deep():
    assert _named_tensors("file", nested(4)).names == ["a.weight"]
    assert _named_tensors("file", nested(5)) is None
    with pytest.raises(DeltaError, match="has weights in several places .ema, model."):
        _named_tensors("file", {"model": nested(1), "ema": nested(2)})
    assert _named_tensors("file", {"state_dict": nested(1), "ema": nested(2)}).names == ["a.weight"]
    within = {"a.weight": torch.ones(2)}
    within["again"] = within
    assert _named_tensors("file", within).names == ["a.weight"]


def test_parameters_in_a_file_are_its_plain_tensors():
    source = _named_tensors("file", {"a": torch.nn.Parameter(torch.ones(2)), "steps": 5})
    assert not source.tensor("a").requires_grad and source.tensor("steps").tolist() == 5.0


@pytest.mark.parametrize("lost, said", [(0.0, False), (1e-9, False), (1.5e-9, True), (0.25, True)])
def test_what_rounding_has_cost_is_not_said(lost, said):
    delta = SparseDelta({"a": SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (2,))})
    text = Conversion(delta, "A toy", lost, notes=["Note."]).text()
    assert text.splitlines()[0] == "A toy: 1 changes in 1 weights." and text.splitlines()[-1] == "Note."
    assert ("Lost with the smaller changes" in text) is said
    if said:
        assert f"{lost:.2%} of the squared change" in text


@pytest.mark.parametrize("density", [None, 0.5])
def test_a_reading_tells_how_far_it_is_to_the_end(density):
    told = []
    request = ReadRequest("a toy", "f", None, density, lambda *at: told.append(at), {}, "trained", None)
    changes = [("diffusion_model.a", torch.tensor([1.0, 0.0, 3.0, 2.0])), ("diffusion_model.b", torch.zeros(2))]
    kept = request.keep_largest(lambda: changes, 2, elements=4)
    assert told[0] == (1, 6) and told[-1] == (6, 6) and told == sorted(told) and len(set(told)) == len(told)
    assert sum(len(entry.indices) for entry in kept.entries.values()) == (3 if density is None else 2)
    silent = ReadRequest("a toy", "f", None, density, None, {}, "trained", None).keep_largest(lambda: changes, 2, 4)
    assert silent.lost == kept.lost


@pytest.mark.parametrize("value", [1e300, float("inf"), float("nan")])
def test_values_of_a_remainder_must_be_numbers_that_float32_holds(value):
    tensors = {
        "remainder_indices": torch.tensor([[0], [1]], dtype=torch.int16),
        "remainder_values": torch.tensor([value], dtype=torch.float64), "remainder_size": torch.tensor([2, 2]),
    }  # fmt: skip
    with pytest.raises(DeltaError, match="is damaged"):
        remainder("a", tensors, (2, 2))
