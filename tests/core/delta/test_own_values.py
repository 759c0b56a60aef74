"""A delta's values may be a model's own parameters: it is saved and applied as any other, without their graph."""

import pytest
import torch

from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.entry import dense
from sara_core.delta.file_v1 import encode

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture
def values():
    return torch.nn.Parameter(torch.tensor([0.5, -0.25]))


@pytest.fixture
def delta(values):
    return SparseDelta({"a.weight": SparseEntry(torch.tensor([1, 4], dtype=torch.int32), values, (2, 3))})


def test_it_is_saved(tmp_path, delta, values):
    delta.save(tmp_path / "delta.safetensors")
    loaded = SparseDelta.load(tmp_path / "delta.safetensors").entries["a.weight"]
    assert torch.equal(loaded.values, values.detach()) and loaded.indices.tolist() == [1, 4]
    _, parts = encode("a.weight", delta.entries["a.weight"], torch.float32)
    assert not any(part.requires_grad for part in parts)


def test_it_is_applied_and_comes_off(delta):
    weights = {"a.weight": torch.ones(2, 3)}
    handle = delta.apply_(weights, 2.0)
    assert weights["a.weight"].tolist() == [[1, 2, 1], [1, 0.5, 1]] and not weights["a.weight"].requires_grad
    handle.set_strength(1.0)
    handle.remove()
    assert torch.equal(weights["a.weight"], torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dense_change_is_in_single_precision(dtype):
    entry = SparseEntry(torch.tensor([1, 4], dtype=torch.int32), torch.tensor([0.5, -0.25], dtype=dtype), (2, 3))
    whole = dense(entry)
    assert whole.dtype == torch.float32 and whole.tolist() == [[0, 0.5, 0], [0, -0.25, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_formed_in_single_precision(dtype):
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([0.3]).to(dtype), (2, 3))
    product = (SparseDelta({"a": entry}) * 1.1).entries["a"].values
    assert product.dtype == torch.float32 and torch.equal(product, entry.values.float() * 1.1)
    assert torch.equal((1.1 * SparseDelta({"a": entry})).entries["a"].values, product)
    assert SparseDelta.__mul__(SparseDelta({}), "2") is NotImplemented
