"""A parameter with several names, or in memory that others share, is one segment, or refused by name."""

import pytest
import torch
from torch import nn

from sara_core import SaRA, UnsupportedModelError
from tests.support.small_models import attached, repeatable, small_net

TOKENS = torch.arange(20).view(4, 5) % 9


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


class TiedHead(nn.Module):
    """The input embedding and the output layer share one weight: as one Parameter, or as two over one memory."""

    def __init__(self, one_object):
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        weight = self.embedding.weight
        self.head.weight = weight if one_object else nn.Parameter(weight.data)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("copies", [False, True], ids=["in place", "after a copy"])
@pytest.mark.parametrize("one_object", [True, False])
def test_a_weight_tied_to_an_embedding_is_one_segment_with_the_whole_gradient(copies, one_object):
    torch.manual_seed(1)
    model = TiedHead(one_object)
    plain = TiedHead(True)
    plain.load_state_dict(model.state_dict())
    store = attached(model, density=0.3, copy_weights=copies)
    segment, = store.support
    assert segment.name == "head.weight"
    with torch.no_grad():
        store.values += 0.1
        plain.head.weight.view(-1)[segment.flat()] += 0.1
    store.write()
    assert torch.allclose(model(TOKENS), plain(TOKENS))
    for network in (model, plain):
        network(TOKENS).square().mean().backward()
    assert torch.allclose(store.values.grad, plain.embedding.weight.grad.view(-1)[segment.flat()], rtol=1e-4)


def test_parameters_that_overlap_without_being_the_same_are_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    with pytest.raises(UnsupportedModelError, match=r"1\.weight' and '0\.weight' overlap|0\.weight' and '1\.weight'"):
        SaRA(model, density=0.3)
    SaRA(model, density=0.3, exclude="0., 1.")


def test_an_overlap_with_a_parameter_that_others_lie_within_is_refused_too():
    """In the order of memory, the bias lies between the two that overlap and ends before the second."""
    whole = torch.randn(100)
    model = nn.Sequential(nn.Linear(6, 6))
    model.register_parameter("whole", nn.Parameter(whole))
    model[0].bias, model[0].weight = nn.Parameter(whole[10:16]), nn.Parameter(whole[30:66].view(6, 6))
    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' and 'whole' overlap"):
        SaRA(model, density=0.3)


def test_parts_of_one_memory_that_do_not_overlap_are_trained():
    whole = torch.randn(12, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].weight, model[1].weight = nn.Parameter(whole[:6]), nn.Parameter(whole[6:])
    assert len(SaRA(model, density=0.5).store.support) == 2


@pytest.mark.parametrize("excluded", ["up.", "tied", "!up.", "!tied"])
def test_a_tied_weight_is_left_out_by_any_of_its_names(excluded):
    patterns = {"include": excluded} if excluded.startswith("!") else {"exclude": excluded}
    names = [segment.name for segment in SaRA(small_net(), density=0.3, **patterns).store.support]
    assert names == ["conv.weight", "grouped.weight", "sequence.weight", "down.weight", "out.weight"]


@pytest.mark.parametrize("included", ["up.", "tied"])
def test_a_tied_weight_is_included_by_any_of_its_names_and_always_called_the_same(included):
    assert [s.name for s in SaRA(small_net(), density=0.3, include=included).store.support] == ["up.weight"]
