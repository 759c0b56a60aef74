"""A family of models from outside: a record in FAMILIES, and it is told, renamed, merged and described as any other."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sara_core import SaRA, SparseDelta, UnsupportedModelError, extract
from sara_core.__main__ import main
from sara_core.delta.modelspec import architecture
from sara_core.diffusers_bridge import comfyui_delta, load_delta
from sara_core.merging.block_factors import block_presets
from sara_core.models.base import opened_base
from sara_core.names.diffusers import diffusers_parts
from sara_core.names.families import FAMILIES, Family, family_of
from sara_core.names.parts import Part
from sara_core.names.table import TableNames, name_table
from sara_core.names.unet import UNetNames
from sara_core.names.unet_family import of_unet
from tests.support.adapter_files import dense
from tests.support.small_models import repeatable

WIDTH = 8
ATTENTION = {f"to_{row}": ("qkv", first, 1, 3) for first, row in enumerate("qkv")}
TABLE = name_table(
    {"entry": "img_entry", "norm_out.linear": ("exit.modulation.1", 0, 1, 1, True)},
    layers=("trunk", {**ATTENTION, "out": "proj"}),
)
ALIASES = name_table({}, layers=("trunk", {"attention.out": "proj"}))
TOY = Family(
    "Toy", lambda shapes: any(name.startswith(("layers.", "trunk.")) for name in shapes), partial(TableNames, TABLE),
    aliases=partial(TableNames, ALIASES), architecture="toy-v1", merge_presets={"Toy trunk": ("trunk",)},
)  # fmt: skip


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "Toy", TOY)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x):
        return x + self.out(torch.softmax(self.to_q(x) * self.to_k(x), -1) * self.to_v(x))


class Toy(nn.Module):
    """[n, 8] → [n, 16], with diffusers' names."""

    def __init__(self):
        super().__init__()
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm_out = nn.ModuleDict({"linear": nn.Linear(WIDTH, 2 * WIDTH)})

    def forward(self, x):
        for layer in (self.entry, *self.layers):
            x = layer(x)
        return self.norm_out["linear"](x)


def toy_model():
    torch.manual_seed(0)
    return Toy()


def comfy_weights(weights):
    """The same weights as ComfyUI would name and fuse them, without the tables."""
    theirs = {f"img_entry.{end}": weights[f"entry.{end}"] for end in ("weight", "bias")}
    for end in ("weight", "bias"):
        scale, shift = weights[f"norm_out.linear.{end}"].chunk(2)
        theirs[f"exit.modulation.1.{end}"] = torch.cat([shift, scale])
    for block in range(2):
        theirs[f"trunk.{block}.qkv.weight"] = torch.cat([weights[f"layers.{block}.to_{row}.weight"] for row in "qkv"])
        theirs[f"trunk.{block}.proj.weight"] = weights[f"layers.{block}.out.weight"]
    return theirs


def shapes_of(weights):
    return {name: tuple(weight.shape) for name, weight in weights.items()}


def trained():
    """A model after some steps, and its delta by its own names."""
    model = toy_model()
    optimizer = SaRA(model, density=0.3, preset="all layers, biases and norms", lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, WIDTH)).square().sum().backward()
        optimizer.step()
    delta = optimizer.delta()
    optimizer.detach()
    return model, delta


def same_weights(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("renamed", [lambda weights: weights, comfy_weights])
def test_it_is_told_by_either_sides_names_and_only_while_it_is_there(toy, monkeypatch, renamed):
    shapes = shapes_of(renamed(toy_model().state_dict()))
    assert family_of(shapes) is TOY
    parts = diffusers_parts(shapes)
    assert parts.keys() == toy_model().state_dict().keys()
    assert parts["layers.1.to_k.weight"] == Part("trunk.1.qkv.weight", 1, 1, 3)
    monkeypatch.delitem(FAMILIES, "Toy")
    assert family_of(shapes) is None and diffusers_parts(shapes) == {}


def test_a_delta_is_renamed_both_ways(toy):
    model, delta = trained()
    renamed = comfyui_delta(model, delta)
    weights = comfy_weights(toy_model().state_dict())
    SparseDelta({name.removeprefix("diffusion_model."): entry for name, entry in renamed.entries.items()}).apply_(
        weights
    )
    same_weights(weights, comfy_weights(model.state_dict()))
    fresh = toy_model()
    load_delta(fresh, renamed)
    same_weights(fresh.state_dict(), model.state_dict())


def test_its_delta_says_so(toy, tmp_path, capsys):
    model, delta = trained()
    comfyui_delta(model, delta).save(tmp_path / "toy.safetensors")
    assert main(["inspect", str(tmp_path / "toy.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["family"] == "Toy"
    assert architecture("Toy") == "toy-v1/sara"


@pytest.mark.parametrize("renamed", [lambda weights: weights, comfy_weights])
def test_its_models_are_bases_and_its_adapter_files_have_its_aliases(toy, tmp_path, renamed):
    before = toy_model().state_dict()
    save_file(renamed(before), tmp_path / "base.safetensors")
    with opened_base(tmp_path / "base.safetensors") as base:
        assert base.family == "Toy" and base.shapes == shapes_of(comfy_weights(before))
        same_weights(dict(base.weights()), {f"diffusion_model.{n}": w for n, w in comfy_weights(before).items()})
    factors = {"lora_A.weight": torch.randn(2, WIDTH), "lora_B.weight": torch.randn(WIDTH, 2)}
    modules = ("layers.0.attention.out", "layers.1.to_v")
    adapter = {f"transformer.{module}.{part}": factors[part].clone() for module in modules for part in factors}
    save_file(adapter, tmp_path / "lora.safetensors")
    assert main(["convert", str(tmp_path / "lora.safetensors"), str(tmp_path / "delta.safetensors"),
                 "--base", str(tmp_path / "base.safetensors"), "--density", "0.9"]) == 0  # fmt: skip
    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    change = factors["lora_B.weight"] @ factors["lora_A.weight"]
    projection, fused = (dense(delta)[f"diffusion_model.trunk.{layer}.weight"] for layer in ("0.proj", "1.qkv"))
    assert len(delta.entries) == 2 and not fused[: 2 * WIDTH].any()
    torch.testing.assert_close(projection, change)
    torch.testing.assert_close(fused[2 * WIDTH :], change)
    assert delta.metadata["sara.family"] == "Toy"


def test_its_parts_are_merged_on_their_own(toy, tmp_path):
    model, delta = trained()
    comfyui_delta(model, delta).save(tmp_path / "toy.safetensors")
    assert list(block_presets())[-1] == "Toy trunk"
    assert main(["merge", str(tmp_path / "merged.safetensors"), str(tmp_path / "toy.safetensors"),
                 "--preset", "Toy trunk"]) == 0  # fmt: skip
    merged = load_file(tmp_path / "merged.safetensors")
    assert merged and all(name.startswith("diffusion_model.trunk.") for name in merged)


def test_whoever_asks_for_names_that_are_not_known_reads_which_are(toy):
    with pytest.raises(UnsupportedModelError, match="are known for models of SD1.5, .*, Qwen-Image or Toy"):
        comfyui_delta(nn.Sequential(nn.Linear(2, 2)), SparseDelta({}))


def test_a_family_with_the_same_names_on_both_sides_needs_none(monkeypatch, tmp_path):
    plain = Family("Plain Toy", lambda shapes: "trunk.0.proj.weight" in shapes, names=None)
    monkeypatch.setitem(FAMILIES, plain.name, plain)
    weights = comfy_weights(toy_model().state_dict())
    assert family_of(shapes_of(weights)).name == "Plain Toy" and diffusers_parts(shapes_of(weights)) == {}
    save_file(weights, tmp_path / "base.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, tmp_path / "tuned.safetensors")
    delta = extract(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", density=0.1)
    assert delta.metadata["sara.family"] == "Plain Toy" and architecture("Plain Toy") == "plain-toy/sara"


def test_the_last_one_is_asked_first(monkeypatch):
    shared = {"transformer_blocks.0.attn.to_q.weight": (WIDTH, WIDTH)}  # by which SD3 and Flux cannot be told apart
    monkeypatch.setitem(FAMILIES, "Toy", Family("Toy", lambda shapes: shapes.keys() == shared.keys(), None))
    assert family_of(shared).name == "Toy"
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert family_of({attention: (640, 2048)}).name == "SDXL"
    monkeypatch.setitem(FAMILIES, "Shallow", Family("Shallow", of_unet(2048, (1,)), UNetNames))
    assert family_of({attention: (640, 2048)}).name == "Shallow"


def test_a_unet_of_no_family_has_names_all_the_same():
    shapes = {f"down_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_k.weight": (32, 48) for i in range(2)}
    assert family_of(shapes).name is None
    assert [part.name for part in diffusers_parts(shapes).values()] == [
        f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight" for i in (1, 2)
    ]


def test_every_family_is_under_its_own_name_and_known_to_the_host(comfy):
    host = comfy.pack_module("nodes.host.family").NAMES
    assert all(name == family.name for name, family in FAMILIES.items())
    assert set(FAMILIES) <= set(host.values())
