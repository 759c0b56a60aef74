"""A rule that somebody adds to the registry is one for SaRA Train too."""

import json

import pytest
import torch

from tests.support.toy_training import train


def lightest_rows(request):
    """The first elements of every weight, of those whose row is drawn before the others'."""
    positions = {}
    for (name,), n in request.shares:
        weight = request.weights[name]
        scores = torch.rand(len(weight), generator=request.generator).repeat_interleave(weight[0].numel())
        positions[name] = scores.topk(n).indices.sort().values
    return positions


def largest_gradients(request):
    ones = {name: torch.ones_like(weight) for name, weight in request.weights.items()}
    return request.by_gradient(ones, request.shares)


@pytest.mark.parametrize("choose, takes", [
    (lightest_rows, {"takes_seed": True}), (largest_gradients, {"needs_loss": True}),
])  # fmt: skip
def test_a_rule_in_the_registry_trains_in_the_node(comfy, model, data, untouched, monkeypatch, choose, takes):
    rules = comfy.pack_module("sara_core.selection.rules")
    monkeypatch.setitem(rules.RULES, choose.__name__, rules.Rule(choose, **takes))
    options = {"steps": 2, "density": 2.0, "learning_rate": 1e-3, "per_layer": True, "seed": 3}
    delta, _ = train(comfy, model, data, **options, selection_rule=choose.__name__)
    chosen = json.loads(delta.metadata["sara.selection"])
    assert chosen["rule"] == choose.__name__ and chosen.get("seed") == (3 if "takes_seed" in takes else None)
    assert delta.nnz == chosen["elements"] > 0
    assert choose.__name__ in comfy.node_class("SaRATrainOptions").INPUT_TYPES()["required"]["selection_rule"][1][
        "options"
    ]
