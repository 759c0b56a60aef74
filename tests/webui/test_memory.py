"""What deltas take in memory while they are on a model, beside themselves: counted, byte by byte."""

import gc

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_webui.fitting import Model
from sara_webui.in_place import InPlace, Place
from sara_webui.prompted import Prompted
from sara_webui.shelf import Shelf
from sara_webui.tags import Tag

MOST_BYTES = 6
NAME, SIDE = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", 512


def _held():
    """Bytes of all tensors that live in this process."""
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [each for each in tensors if each.layout is torch.strided and each.device.type == "cpu"]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


@pytest.mark.parametrize("strengths", [[0.8], [0.5, -1.0, 2.0]], ids=len)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_beside_the_deltas_themselves(tmp_path, dtype, strengths):
    elements, tags = 0, []
    for number, strength in enumerate(strengths):
        indices = torch.randperm(SIDE * SIDE)[: SIDE * SIDE // 4].sort().values.int()
        entry = SparseEntry(indices, torch.randn(len(indices)), (SIDE, SIDE))
        SparseDelta({NAME: entry}).save(tmp_path / f"{number}.safetensors")
        tags.append(Tag(f"{number}", strength, strength))
        elements += len(indices)
    del indices, entry
    layer = torch.nn.Linear(SIDE, SIDE, bias=False, dtype=dtype)
    first = layer.weight.detach().clone()
    model = Model(layer, "a model", "SD1.5", {f"model.{NAME}": Place(layer.weight, (layer,))})
    weights = InPlace(pytest.fail)
    prompted = Prompted(Shelf(lambda: [tmp_path]), weights)
    before = _held()
    outcome = prompted.settle(lambda: model, layer, tags)
    assert not outcome.lines and not torch.equal(layer.weight, first)
    assert elements * 8 < _held() - before <= elements * (8 + MOST_BYTES)  # a position and a value are the delta's own
    with weights.lifted(layer):
        assert torch.equal(layer.weight, first)
    assert _held() - before <= elements * (8 + MOST_BYTES)
    prompted.take_off()
    assert torch.equal(layer.weight, first) and _held() == before
