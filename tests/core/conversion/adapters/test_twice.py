"""One weight that a file changes in several ways, or under several names, is refused by name: no two programs agree on
what such a file does."""

import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.toy_adapters import COLUMNS, LAYER, ROWS, base_file, changes, factors, numbers, of_module, saved

LOHA = {f".hada_w{number}_{part}": numbers(*shape, seed=number) for number in (1, 2)
        for part, shape in (("a", (ROWS, 2)), ("b", (2, COLUMNS)))}  # fmt: skip
LOKR = {".lokr_w1": numbers(2, 2), ".lokr_w2": numbers(4, 3)}
FORMATS = {
    "LoRA": factors(),
    "LoHa": LOHA,
    "LoKr": LOKR,
    "difference": {".diff": numbers(ROWS, COLUMNS)},
    "whole weight": {".set_weight": numbers(ROWS, COLUMNS)},
    "OFT": {".oft_blocks": numbers(2, 4, 4)},
    "GLoRA": {".a1.weight": numbers(6, 2), ".a2.weight": numbers(2, 6), ".b1.weight": numbers(8, 2),
              ".b2.weight": numbers(2, 6)},
    "(IA)³": {".ia3_l": numbers(ROWS, 1)},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_file(tmp_path_factory.mktemp("toy"))


PAIRS = [(one, other) for number, one in enumerate(FORMATS) for other in list(FORMATS)[number + 1 :]]


@pytest.mark.parametrize("one, other", PAIRS)
def test_two_formats_of_one_layer_are_refused_by_name(tmp_path, base, one, other):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, FORMATS[one] | FORMATS[other]))
    with pytest.raises(DeltaError, match=f"changes '{LAYER}' in several ways at once, by .* and .*Save it again"):
        read_delta(path, base, density=1.0)


@pytest.mark.parametrize("other", [{".lora_B.bias": numbers(ROWS)}, {".ln_tuning_layers.bias": numbers(ROWS)}])
def test_two_changes_of_one_bias_are_refused_by_name(tmp_path, base, other):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, factors() | {".diff_b": numbers(ROWS)} | other))
    with pytest.raises(DeltaError, match=f"'{LAYER}.bias' in several ways at once"):
        read_delta(path, base, density=1.0)


def test_a_weight_and_its_bias_may_change_in_two_formats(tmp_path, base):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, factors() | {".diff_b": numbers(ROWS)}))
    assert changes(path, base)[0].keys() == {f"{LAYER}.weight", f"{LAYER}.bias"}


@pytest.mark.parametrize("alias", [f"diffusion_model.{LAYER}", "lora_unet_blocks_0_q", "lycoris_blocks_0_q",
                                   f"base_model.model.{LAYER}", f"transformer.{LAYER}"])  # fmt: skip
@pytest.mark.parametrize("other", ["LoRA", "difference"])
def test_two_names_of_one_layer_are_refused_by_both(tmp_path, base, alias, other):
    tensors = of_module(LAYER, factors()) | of_module(alias, FORMATS[other])
    with pytest.raises(DeltaError, match="one weight under two names, ") as error:
        read_delta(saved(tmp_path / "x.safetensors", tensors), base, density=1.0)
    assert f"'{LAYER}'" in str(error.value) and f"'{alias}'" in str(error.value)


def test_a_part_of_a_fused_weight_and_the_whole_of_it_are_two_changes_of_one(tmp_path):
    shapes = {"layers.0.attention.qkv.weight": (18, 6), "layers.0.attention.out.weight": (6, 6)}
    base = saved(tmp_path / "base.safetensors", {name: numbers(*shape) for name, shape in shapes.items()})
    parts = [of_module(f"layers.0.attention.{part}", factors(6, 6)) for part in ("to_q", "to_k", "to_v")]
    path = saved(tmp_path / "parts.safetensors", parts[0] | parts[1] | parts[2])
    (change,) = changes(path, base)[0].values()
    assert torch.equal(change[:6], change[6:12]) and torch.equal(change[:6], change[12:])
    path = saved(tmp_path / "x.safetensors", parts[1] | of_module("layers.0.attention.qkv", factors(18, 6)))
    with pytest.raises(DeltaError, match="'layers.0.attention.qkv' and 'layers.0.attention.to_k'"):
        read_delta(path, base, density=1.0)
