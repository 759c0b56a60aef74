"""What was trained is the rule, as LyCORIS and PEFT compute it (here by their formulas); what ComfyUI shows instead is
another reading, and the report says where the two differ, and how far."""

import json
import re

import pytest
import torch

from sara_core.__main__ import main
from sara_core.conversion.read import read_delta
from sara_core.errors import DeltaError
from tests.support.toy_adapters import (
    COLUMNS, CONVOLUTION, LAYER, ROWS, base_file, changes, factors, numbers, of_module, saved, weights,
)  # fmt: skip

WEIGHT, KERNEL = weights()[f"{LAYER}.weight"], weights()[f"{CONVOLUTION}.weight"]
LORA = factors()[".lora_up.weight"] @ factors()[".lora_down.weight"]
BLOCKS = numbers(2, 4, 4, seed=5)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_file(tmp_path_factory.mktemp("toy"))


def rotations(blocks, bound=None):
    skew = blocks - blocks.transpose(-1, -2)
    if bound is not None:
        assert bound < skew.norm()  # or it would say nothing
        skew = skew * bound / skew.norm()
    one = torch.eye(blocks.shape[-1])
    return (one + skew) @ torch.linalg.inv(one - skew)


def oft(blocks, bound=None, rescale=1.0, weight=WEIGHT):
    groups, size, _ = blocks.shape
    rows = weight.reshape(groups, size, -1)
    return (rotations(blocks, bound).transpose(1, 2) @ rows).reshape(weight.shape) * rescale - weight


def boft(blocks, bound=None, rescale=1.0):
    """One step: neighbours of two halves of each group of rows are turned together."""
    (rotation,), order = rotations(blocks, bound), torch.arange(ROWS).view(-1, 2, 2).transpose(1, 2).reshape(-1)
    turned = (rotation @ WEIGHT[order].view(2, 4, -1)).view(ROWS, -1)
    return turned[order.argsort()] * rescale - WEIGHT


def dora(change, scale, weight, divided):
    """divided: the norms by row of what this is"""
    return (weight + change) * (scale / divided.flatten(1).norm(dim=1)).view(-1, *[1] * (weight.dim() - 1)) - weight


ALPHA = 0.05  # the bound is a number of some 0.05 · 8 rows
SCALE = 1 + 0.1 * numbers(ROWS, seed=9)
RESCALE = 1 + 0.1 * numbers(ROWS, 1, seed=8)
CONV = {".lora_up.weight": numbers(6, 2, 1, 1), ".lora_down.weight": numbers(2, 4, 3, 3)}
CONV_CHANGE = (CONV[".lora_up.weight"].flatten(1) @ CONV[".lora_down.weight"].flatten(1)).view(KERNEL.shape)
CONV_SCALE = 1 + 0.1 * numbers(6, seed=9)
# Module, its tensors, its change as it was trained, as ComfyUI shows it, and what the report calls the difference.
OTHERWISE = {
    "OFT with a bound": (LAYER, {".oft_blocks": BLOCKS, ".alpha": torch.tensor(ALPHA)},
                         oft(BLOCKS, ALPHA * ROWS), oft(BLOCKS, ALPHA), "the bound of a rotation"),
    "OFT rescaled": (LAYER, {".oft_blocks": BLOCKS, ".rescale": RESCALE},
                     oft(BLOCKS, rescale=RESCALE), oft(BLOCKS), "the rescaling of an OFT"),
    "OFT with both": (LAYER, {".oft_blocks": BLOCKS, ".rescale": RESCALE, ".alpha": torch.tensor(ALPHA)},
                      oft(BLOCKS, ALPHA * ROWS, RESCALE), oft(BLOCKS, ALPHA),
                      "the bound of a rotation, the rescaling of an OFT"),
    "OFT of a convolution": (CONVOLUTION, {".oft_blocks": numbers(2, 3, 3), ".alpha": torch.tensor(ALPHA)},
                             oft(numbers(2, 3, 3), ALPHA * 6, weight=KERNEL),
                             oft(numbers(2, 3, 3), ALPHA, weight=KERNEL), "the bound of a rotation"),
    "BOFT with a bound": (LAYER, {".oft_blocks": BLOCKS[None], ".rescale": RESCALE, ".alpha": torch.tensor(ALPHA)},
                          boft(BLOCKS[None], ALPHA * ROWS, RESCALE), boft(BLOCKS[None], ALPHA, RESCALE),
                          "the bound of a rotation"),
    "BOFT without alpha": (LAYER, {".oft_blocks": BLOCKS[None]}, boft(BLOCKS[None]), None, "a BOFT without alpha"),
    "DoRA by rows": (LAYER, factors() | {".dora_scale": SCALE.view(-1, 1)},
                     dora(LORA, SCALE, WEIGHT, WEIGHT + LORA), dora(LORA, SCALE, WEIGHT, WEIGHT), "DoRA by rows"),
    "DoRA by rows of a convolution": (CONVOLUTION, CONV | {".dora_scale": CONV_SCALE.view(-1, 1, 1, 1)},
                                      dora(CONV_CHANGE, CONV_SCALE, KERNEL, KERNEL + CONV_CHANGE),
                                      dora(CONV_CHANGE, CONV_SCALE, KERNEL, KERNEL), "DoRA by rows"),
    "DoRA of PEFT": (LAYER, factors() | {".lora_magnitude_vector": SCALE},
                     dora(LORA, SCALE, WEIGHT, WEIGHT + LORA), LORA, "DoRA of PEFT"),
}  # fmt: skip
ALIKE = {
    "LoRA": factors() | {".alpha": torch.tensor(1.0)},
    "OFT with a bound that does not count": {".oft_blocks": BLOCKS, ".alpha": torch.tensor(1e3)},
    "OFT": {".oft_blocks": BLOCKS, ".alpha": torch.tensor(0.0)},
    "BOFT": {".oft_blocks": BLOCKS[None], ".alpha": torch.tensor(0.0), ".rescale": RESCALE},
    "DoRA by columns": factors() | {".dora_scale": 1 + 0.1 * numbers(1, COLUMNS)},
    "difference": {".diff": numbers(ROWS, COLUMNS)},
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERWISE)
def test_what_was_trained_is_read_and_what_comfyui_shows_is_the_other_reading(tmp_path, base, kind):
    module, tensors, trained, shown, ways = OTHERWISE[kind]
    path = saved(tmp_path / "x.safetensors", of_module(module, tensors))
    found, conversion = changes(path, base)
    torch.testing.assert_close(found[f"{module}.weight"], trained, rtol=1e-5, atol=1e-5)
    share = float((trained - (0 if shown is None else shown)).norm() / trained.norm())
    said = re.search(r"As it was trained\. ComfyUI itself shows another change, by ([\d.]+)% of this one \((.*)\); the "
                     r"reading 'comfyui' gives that\.", conversion.text())  # fmt: skip
    assert float(said[1]) == pytest.approx(100 * share, abs=0.051) and said[2] == ways and share > 0.01
    if shown is None:
        with pytest.raises(DeltaError, match="changes nothing"):
            read_delta(path, base, density=1.0, reading="comfyui")
        return
    found, conversion = changes(path, base, reading="comfyui")
    torch.testing.assert_close(found[f"{module}.weight"], shown, rtol=1e-5, atol=1e-5)
    assert re.search(rf"As ComfyUI shows it\. What was trained is another change, by .*\({ways}\)", conversion.text())


@pytest.mark.parametrize("kind", ALIKE)
def test_where_both_read_alike_nothing_is_said(tmp_path, base, kind):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, ALIKE[kind]))
    one, other = changes(path, base), changes(path, base, reading="comfyui")
    torch.testing.assert_close(one[0], other[0], rtol=1e-6, atol=1e-6)
    assert all("another change" not in conversion.text() for _, conversion in (one, other))


def test_settings_beside_the_tensors_are_not_read_by_comfyui(tmp_path, base):
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "r": 2})}
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, factors()), metadata)
    found, conversion = changes(path, base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], 4 * LORA)
    assert "by 75.0% of this one (settings that it does not read)" in conversion.text()
    torch.testing.assert_close(changes(path, base, reading="comfyui")[0][f"{LAYER}.weight"], LORA)


def test_the_difference_is_that_of_the_whole_file(tmp_path, base):
    one = of_module(LAYER, OTHERWISE["DoRA of PEFT"][1])
    other = of_module(CONVOLUTION, OTHERWISE["DoRA by rows of a convolution"][1])
    rest = of_module("blocks.1.q", factors())
    text = changes(saved(tmp_path / "x.safetensors", one | other | rest), base)[1].text()
    pairs = [OTHERWISE[kind][2:4] for kind in ("DoRA of PEFT", "DoRA by rows of a convolution")]
    between = sum(float((trained - shown).square().sum()) for trained, shown in pairs)
    whole = sum(float(trained.square().sum()) for trained, _ in pairs) + float(LORA.square().sum())
    said = re.search(r"by ([\d.]+)% of this one \(DoRA by rows, DoRA of PEFT\)", text)
    assert float(said[1]) == pytest.approx(100 * (between / whole) ** 0.5, abs=0.051)


def test_a_density_of_the_largest_changes_says_the_same(tmp_path, base):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, OTHERWISE["DoRA by rows"][1]))
    lines = {read_delta(path, base, density=density).text().splitlines()[-1] for density in (0.01, 0.05, 1.0)}
    assert len(lines) == 1 and "DoRA by rows" in lines.pop()


def test_the_command_line_and_the_library_know_the_readings(tmp_path, base, capsys):
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, OTHERWISE["OFT rescaled"][1]))
    command = ["convert", str(path), str(tmp_path / "out.safetensors"), "--base", str(base), "--density", "1"]
    assert main(command) == 0 and "As it was trained." in capsys.readouterr().out
    assert main([*command, "--reading", "comfyui"]) == 0 and "As ComfyUI shows it." in capsys.readouterr().out
    with pytest.raises(DeltaError, match="no reading 'mine'. Choose trained or comfyui"):
        read_delta(path, base, density=1.0, reading="mine")


REMAINDER = {
    ".bias_indices": torch.tensor([[0, 7], [5, 2]], dtype=torch.int16),
    ".bias_values": torch.tensor([3.0, -2.0]).half(),
    ".bias_size": torch.tensor([8, 6], dtype=torch.int16),
}


def test_what_lycoris_keeps_beside_an_extracted_lora_is_added_to_it(tmp_path, base):
    tensors = factors() | REMAINDER | {".alpha": torch.tensor(2.0)}
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, tensors))
    expected = LORA.clone()
    expected[0, 5] += 3
    expected[7, 2] -= 2
    found, conversion = changes(path, base)
    torch.testing.assert_close(found[f"{LAYER}.weight"], expected)
    assert "(a sparse remainder); the reading 'comfyui'" in conversion.text()
    torch.testing.assert_close(changes(path, base, reading="comfyui")[0][f"{LAYER}.weight"], LORA)


def test_a_remainder_of_a_convolution_counts_its_columns_beyond_what_int16_holds(tmp_path):
    wide = torch.zeros(2, 40_000)
    base = saved(tmp_path / "base.safetensors", {"blocks.0.wide.weight": wide})
    positions = torch.tensor([[1], [39_999]])
    tensors = {".lora_up.weight": numbers(2, 1), ".lora_down.weight": numbers(1, 40_000),
               ".bias_indices": positions.to(torch.int16), ".bias_values": torch.ones(1),
               ".bias_size": torch.tensor([2, 40_000]).to(torch.int16)}  # fmt: skip
    found, _ = changes(saved(tmp_path / "x.safetensors", of_module("blocks.0.wide", tensors)), base)
    lora = tensors[".lora_up.weight"] @ tensors[".lora_down.weight"]
    assert ((found["blocks.0.wide.weight"] - lora).abs() > 0.5).nonzero().tolist() == [[1, 39_999]]


def test_beside_a_tucker_core_a_remainder_holds_no_changes_and_is_left_out(tmp_path, base):
    core = {".lora_up.weight": numbers(6, 2, 1, 1), ".lora_down.weight": numbers(2, 4, 1, 1),
            ".lora_mid.weight": numbers(2, 2, 3, 3)}  # fmt: skip
    alone, _ = changes(saved(tmp_path / "alone.safetensors", of_module(CONVOLUTION, core)), base)
    path = saved(tmp_path / "x.safetensors", of_module(CONVOLUTION, core | REMAINDER))
    found, conversion = changes(path, base)
    torch.testing.assert_close(found, alone)
    assert "sparse remainders beside Tucker cores" in conversion.text() and len(conversion.left_out) == 3


@pytest.mark.parametrize("part, tensor", [
    (".bias_size", torch.tensor([6, 8], dtype=torch.int16)),
    (".bias_indices", torch.tensor([[0, 8], [5, 2]], dtype=torch.int16)),
    (".bias_indices", torch.tensor([[0, -1], [5, 2]])),
    (".bias_indices", torch.tensor([0, 7], dtype=torch.int16)),
    (".bias_indices", torch.tensor([[0.0, 7.0], [5.0, 2.0]])),
    (".bias_values", torch.tensor([3.0, float("nan")])),
    (".bias_values", torch.ones(3)),
    (".bias_values", None),
])  # fmt: skip
def test_a_damaged_remainder_is_refused(tmp_path, base, part, tensor):
    tensors = factors() | REMAINDER | {part: tensor}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(DeltaError, match=f"sparse remainder of the file's module '{LAYER}' is damaged"):
        read_delta(saved(tmp_path / "x.safetensors", of_module(LAYER, tensors)), base, density=1.0)


def test_glora_with_a_tucker_core_is_read_as_lycoris_computes_it(tmp_path, base):
    parts = {"a1": (4, 2, 1, 1), "a2": (2, 4, 1, 1), "b1": (6, 2, 1, 1), "b2": (2, 4, 1, 1), "bm": (2, 2, 3, 3)}
    t = {part: numbers(*shape, seed=number) for number, (part, shape) in enumerate(parts.items())}
    path = saved(tmp_path / "x.safetensors", {f"{CONVOLUTION}.{part}.weight": tensor for part, tensor in t.items()})
    b = torch.einsum("mnkl,im,nj->ijkl", t["bm"], t["b1"].flatten(1), t["b2"].flatten(1))
    a = torch.einsum("oikl,ij,jn->onkl", KERNEL, t["a1"].flatten(1), t["a2"].flatten(1))
    torch.testing.assert_close(changes(path, base)[0][f"{CONVOLUTION}.weight"], a + b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 2.0])
def test_an_oft_is_applied_by_its_strength(tmp_path, base, strength):
    """Where ComfyUI squares it."""
    path = saved(tmp_path / "x.safetensors", of_module(LAYER, {".oft_blocks": BLOCKS}))
    model = {f"{LAYER}.weight": WEIGHT.clone()}
    read_delta(path, base, density=1.0).delta.apply_(model, strength)
    torch.testing.assert_close(model[f"{LAYER}.weight"], WEIGHT + strength * oft(BLOCKS))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_loha_and_lokr_are_scaled_once_by_alpha_over_rank(tmp_path, base, alpha):
    """As LyCORIS trains them; where it merges them it scales twice."""
    loha = {f".hada_w{number}_{part}": numbers(*shape, seed=number) for number in (1, 2)
            for part, shape in (("a", (ROWS, 2)), ("b", (2, COLUMNS)))}  # fmt: skip
    lokr = {".lokr_w1": numbers(2, 2), ".lokr_w2_a": numbers(4, 2), ".lokr_w2_b": numbers(2, 3)}
    expected = {
        "loha": (loha[".hada_w1_a"] @ loha[".hada_w1_b"]) * (loha[".hada_w2_a"] @ loha[".hada_w2_b"]),
        "lokr": torch.kron(lokr[".lokr_w1"], lokr[".lokr_w2_a"] @ lokr[".lokr_w2_b"]),
    }
    for name, tensors in (("loha", loha), ("lokr", lokr)):
        tensors = of_module(LAYER, tensors | {".alpha": torch.tensor(alpha)})
        found, _ = changes(saved(tmp_path / f"{name}.safetensors", tensors), base)
        torch.testing.assert_close(found[f"{LAYER}.weight"], expected[name] * alpha / 2)


@pytest.mark.parametrize("beside", [{".lokr_w1": numbers(2, 2), ".lokr_w2": numbers(4, 3)}, {".diff_b": numbers(ROWS)}])
def test_a_remainder_of_no_lora_is_left_out(tmp_path, base, beside):
    alone, _ = changes(saved(tmp_path / "alone.safetensors", of_module(LAYER, beside)), base)
    found, conversion = changes(saved(tmp_path / "x.safetensors", of_module(LAYER, beside | REMAINDER)), base)
    torch.testing.assert_close(found, alone)
    assert len(conversion.left_out) == 3
