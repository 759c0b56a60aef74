"""LoRA and LyCORIS files in, with ComfyUI's own adapters as the measure, and LoRAs out."""

import math

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.fuzz_.mutations import safetensors_file
from sara_core.conversion.adapters.names import places
from sara_core.conversion.read import read_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError
from sara_core.extraction.largest_changes import keep_largest
from sara_core.models.base import opened_base
from tests.support.adapter_files import (
    CONVOLUTION, LINEAR, MODULE, adapter_file, dense, family_file, locon, loha, lokr, lora, random,
)  # fmt: skip
from tests.support.family_models import FAMILIES


KINDS = {
    "LoRA": lambda: lora(*LINEAR),
    "LoRA with alpha": lambda: lora(*LINEAR) | {".alpha": torch.tensor(2.0)},
    "LoRA of PEFT": lambda: lora(*LINEAR, up="lora_B.weight", down="lora_A.weight"),
    "LoRA of PEFT with an adapter's name": lambda: lora(*LINEAR, up="lora_B.default.weight",
                                                        down="lora_A.default.weight"),
    "LoRA of diffusers": lambda: lora(*LINEAR, up="lora.up.weight", down="lora.down.weight"),
    "LoRA of transformers": lambda: lora(*LINEAR, up="lora_linear_layer.up.weight",
                                         down="lora_linear_layer.down.weight"),
    "LoCon": lambda: lora(*CONVOLUTION) | {".alpha": torch.tensor(1.0)},
    "LoCon with a core": lambda: locon(*CONVOLUTION) | {".alpha": torch.tensor(1.0)},
    "LoHa": lambda: loha(*LINEAR) | {".alpha": torch.tensor(2.0)},
    "LoHa of a convolution": lambda: loha(*CONVOLUTION),
    "LoHa with a core": lambda: loha(*CONVOLUTION, core=True) | {".alpha": torch.tensor(2.0)},
    "LoKr": lambda: lokr(*LINEAR) | {".alpha": torch.tensor(2.0)},
    "LoKr, first factor of a rank": lambda: lokr(*LINEAR, first=True) | {".alpha": torch.tensor(3.0)},
    "LoKr, second factor of a rank": lambda: lokr(*LINEAR, second=True) | {".alpha": torch.tensor(3.0)},
    "LoKr, both of a rank": lambda: lokr(*LINEAR, first=True, second=True) | {".alpha": torch.tensor(3.0)},
    "LoKr of a convolution": lambda: lokr(*CONVOLUTION),
    "LoKr of a convolution, of a rank": lambda: lokr(*CONVOLUTION, second=True) | {".alpha": torch.tensor(3.0)},
    "difference": lambda: {".diff": random(*LINEAR)},
    "difference of a bias": lambda: {".diff_b": random(1280)},
    "LoRA in float16": lambda: {part: tensor.half() for part, tensor in lora(*LINEAR).items()},
}  # fmt: skip
GOOD = lora(*LINEAR)
CONVOLUTIONS = {"LoCon", "LoCon with a core", "LoHa of a convolution", "LoHa with a core", "LoKr of a convolution",
                "LoKr of a convolution, of a rank"}  # fmt: skip


@pytest.fixture(scope="module")
def sd15(comfy, tmp_path_factory):
    """The small SD1.5 of the host, and its checkpoint file."""
    return FAMILIES["SD1.5"].model(), family_file("SD1.5", tmp_path_factory.mktemp("base") / "base.safetensors")


def hosts_changes(model, path):
    """Weight → what the host's Load LoRA adds to it at strength 1."""
    import comfy.lora
    import comfy.utils

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = model.model_state_dict()
    changes = {}
    for key, patch in comfy.lora.load_lora(comfy.utils.load_torch_file(str(path), safe_load=True), keys).items():
        name, offset, function = (*((key,) if isinstance(key, str) else key), None, None)[:3]
        zeros = changes.setdefault(name, torch.zeros_like(weights[name]))
        changes[name] = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, function)], zeros, name)
    return changes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_a_weight_as_in_comfyui(tmp_path, sd15, kind):
    model, base = sd15
    path = adapter_file(tmp_path / "x.safetensors", MODULE[4 if kind in CONVOLUTIONS else 2], KINDS[kind]())
    ours, hosts = dense(read_delta(path, base, density=1.0).delta), hosts_changes(model, path)
    assert ours.keys() == hosts.keys() and len(ours) == 1
    for name in ours:
        assert torch.count_nonzero(ours[name]) == ours[name].numel()
        torch.testing.assert_close(ours[name], hosts[name], rtol=1e-5, atol=1e-5 * float(hosts[name].abs().max()))


def test_lokr_with_a_core_too(tmp_path, sd15):
    """Which this ComfyUI fails at, and then leaves out: a view of what is not contiguous."""
    tensors = lokr(*CONVOLUTION, core=True, first=True) | {".alpha": torch.tensor(3.0)}
    path = adapter_file(tmp_path / "x.safetensors", MODULE[4], tensors)
    second = torch.einsum("abkl,bc,ar->rckl", tensors[".lokr_t2"], tensors[".lokr_w2_b"], tensors[".lokr_w2_a"])
    first = (tensors[".lokr_w1_a"] @ tensors[".lokr_w1_b"])[:, :, None, None]
    (ours,) = dense(read_delta(path, sd15[1], density=1.0).delta).values()
    torch.testing.assert_close(ours, torch.kron(first, second.contiguous()) * 1.5)


# A name of unCLIP's, which the host gives all models of the layout.
OTHER_MODELS = ("class_embedding",)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_that_comfyui_knows_for_a_module_is_known(comfy, tmp_path, name):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(FAMILIES[name].model().model, {})
    with opened_base(family_file(name, tmp_path / "base.safetensors")) as base:
        known, shapes = places(base), base.shapes
    for alias, place in keys.items():
        key, offset, function = (*((place,) if isinstance(place, str) else place), None, None)[:3]
        if key.removeprefix("diffusion_model.") not in shapes or any(word in alias for word in OTHER_MODELS):
            continue
        part = known.get(alias)
        assert part is not None and f"diffusion_model.{part.name}" == key, alias
        assert part.swapped == (function is not None), alias
        rows = shapes[part.name][0] // part.whole if shapes[part.name] else 0
        assert offset in (None, (0, rows * part.first, rows * part.size)) and (offset or part.whole == 1), alias


def test_a_base_with_flux_original_names_is_the_same_base(tmp_path, comfy):
    weights = FAMILIES["Flux"].state_dict()
    original = {key.replace("_norm.weight", "_norm.scale"): tensor.clone() for key, tensor in weights.items()}
    assert original.keys() != weights.keys()
    save_file(original, tmp_path / "original.safetensors")
    with opened_base(tmp_path / "original.safetensors") as base:
        assert set(base.shapes) == set(weights) and base.parts and base.family == "Flux"
        assert all(torch.equal(base.weight(name), weights[name]) for name in weights)
    delta = SparseDelta({"diffusion_model.double_blocks.0.img_attn.norm.key_norm.weight":
                         SparseEntry(torch.tensor([3], dtype=torch.int32), torch.ones(1), (128,))})  # fmt: skip
    delta.apply_(original)
    name = "double_blocks.0.img_attn.norm.key_norm"
    assert int((original[f"{name}.scale"] != weights[f"{name}.weight"]).sum()) == 1


def test_parts_of_a_fused_weight_add_up_to_one(tmp_path, comfy):
    """Flux in diffusers names: query, key, value and the MLP's first layer are one weight of ComfyUI's."""
    base = family_file("Flux", tmp_path / "base.safetensors")
    tensors = {}
    for module, rows in (("attn.to_q", 128), ("attn.to_v", 128), ("proj_mlp", 512)):
        tensors |= {f"single_transformer_blocks.0.{module}{part}": tensor for part, tensor in lora(rows, 128).items()}
    tensors |= {f"norm_out.linear{part}": tensor for part, tensor in lora(256, 128).items()}
    path = adapter_file(tmp_path / "x.safetensors", "transformer.", tensors)
    ours, hosts = dense(read_delta(path, base, density=0.9).delta), hosts_changes(FAMILIES["Flux"].model(), path)
    assert ours.keys() == hosts.keys() and len(ours) == 2
    for name in ours:
        torch.testing.assert_close(ours[name], hosts[name], rtol=1e-5, atol=1e-4)


def test_the_density_keeps_the_largest_changes_and_reports_what_is_lost(tmp_path, sd15):
    base = sd15[1]
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], lora(*LINEAR))
    whole = dense(read_delta(path, base, density=1.0).delta)[MODULE[2] + ".weight"].view(-1)
    with opened_base(base) as opened:
        count = round(0.01 * opened.elements)
    assert count < len(whole)
    conversion = read_delta(path, base, density=0.01)
    (entry,) = conversion.delta.entries.values()
    kept = whole.abs().topk(count).indices.sort().values
    assert torch.equal(entry.indices.long(), kept) and torch.equal(entry.values, whole[kept])
    lost = 1 - float(whole[kept].double().square().sum() / whole.double().square().sum())
    assert conversion.lost == pytest.approx(lost) and f"{lost:.2%}" in conversion.text()
    assert not read_delta(path, base, density=1.0).lost


def test_the_cut_is_over_all_weights_together(tmp_path, sd15):
    large = {MODULE[2] + part: tensor * 10 for part, tensor in lora(*LINEAR).items()}
    small = {MODULE[4] + part: tensor for part, tensor in lora(*CONVOLUTION).items()}
    path = adapter_file(tmp_path / "x.safetensors", "", large | small)
    entries = read_delta(path, sd15[1], density=0.005).delta.entries
    changes = dense(read_delta(path, sd15[1], density=1.0).delta)
    smallest = min(float(entry.values.abs().min()) for entry in entries.values())
    for name, change in changes.items():
        above = change.abs() >= smallest
        assert int(above.sum()) == (len(entries[name].indices) if name in entries else 0)


def test_a_change_that_becomes_infinite_in_float32_is_refused():
    change = torch.tensor([0.0, 1e300, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(DeltaError, match="'w' has values that are NaN or infinite"):
        keep_largest(lambda: [("w", change)], 0.5, 4)


def test_without_a_density_it_asks_for_one(tmp_path, sd15):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], lora(*LINEAR))
    with pytest.raises(DeltaError, match="100% .*Choose a density"):
        read_delta(path, sd15[1])
    for density in (0, -0.1, 1.5, math.nan):
        with pytest.raises(DeltaError, match="The density is .*above 0 and at most 1"):
            read_delta(path, sd15[1], density=density)
    with pytest.raises(DeltaError, match="beside the base model"):
        read_delta(path, density=0.1)


def test_a_text_encoders_modules_are_kept_and_those_that_no_name_tells_are_left_out_and_counted(tmp_path, sd15):
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1" + part: tensor for part, tensor in lora(9, 7).items()}
    strange = {"lora_te_somewhere_else" + part: tensor for part, tensor in lora(9, 7).items()}
    own = {MODULE[2] + part: tensor for part, tensor in lora(*LINEAR).items()}
    conversion = read_delta(adapter_file(tmp_path / "x.safetensors", "", text | strange | own), sd15[1], density=0.1)
    layer = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    assert set(conversion.delta.entries) == {layer, MODULE[2] + ".weight"}
    assert conversion.delta.entries[layer].shape == (9, 7) and len(conversion.delta.entries[layer].indices) == 6
    assert len(conversion.left_out) == 1 and "1 modules of the text encoder" in conversion.text()
    alone = read_delta(adapter_file(tmp_path / "text.safetensors", "", text), sd15[1], density=0.1)
    assert set(alone.delta.entries) == {layer} and "CLIP-L: 6 of the changes, in 1 weight." in alone.text()
    with pytest.raises(DeltaError, match="only text encoders.*whose names are known"):
        read_delta(adapter_file(tmp_path / "strange.safetensors", "", strange), sd15[1], density=0.1)


@pytest.mark.parametrize("parts", [
    {".dora_scale": random(9, 1)}, {".oft_blocks": random(3, 3, 3)}, {".set_weight": random(9, 7)},
])  # fmt: skip
def test_what_depends_on_a_text_encoder_that_the_base_lacks_is_left_out(tmp_path, sd15, parts):
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1" + part: tensor for part, tensor in parts.items()}
    own = {MODULE[2] + part: tensor for part, tensor in lora(*LINEAR).items()}
    conversion = read_delta(adapter_file(tmp_path / "x.safetensors", "", text | own), sd15[1], density=0.1)
    assert set(conversion.delta.entries) == {MODULE[2] + ".weight"} and len(conversion.left_out) == 1


def test_factors_for_a_text_encoder_of_no_real_size_take_no_memory(tmp_path, sd15):
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    text = {f"{name}.lora_up.weight": torch.zeros(30_000, 1), f"{name}.lora_down.weight": torch.zeros(1, 30_000)}
    own = {MODULE[2] + part: tensor for part, tensor in lora(*LINEAR).items()}
    conversion = read_delta(adapter_file(tmp_path / "x.safetensors", "", text | own), sd15[1], density=0.1)
    assert conversion.left_out == [name]


def test_modules_that_the_base_lacks_are_named(tmp_path, sd15):
    path = adapter_file(tmp_path / "x.safetensors", "lora_unet_down_blocks_3_resnets_0_conv1", lora(*CONVOLUTION))
    with pytest.raises(DeltaError, match="down_blocks_3_resnets_0_conv1.*Give the base model"):
        read_delta(path, sd15[1], density=0.1)


HOSTILE = {
    "one half missing": {".lora_up.weight": GOOD[".lora_up.weight"]},
    "the other half missing": {".lora_down.weight": GOOD[".lora_down.weight"]},
    "ranks that differ": GOOD | {".lora_up.weight": random(1280, 5)},
    "another number of rows": GOOD | {".lora_up.weight": random(640, 4)},
    "another number of columns": GOOD | {".lora_down.weight": random(4, 640)},
    "transposed": {".lora_up.weight": random(320, 4), ".lora_down.weight": random(4, 1280)},
    "a huge change out of a small file": {".lora_up.weight": random(500_000, 1),
                                          ".lora_down.weight": random(1, 500_000)},
    "a huge rank": {".lora_up.weight": random(1280, 4097), ".lora_down.weight": random(4097, 320)},
    "rank 0": {".lora_up.weight": random(1280, 0), ".lora_down.weight": random(0, 320)},
    "vectors": {".lora_up.weight": random(1280), ".lora_down.weight": random(320)},
    "numbers": {".lora_up.weight": torch.tensor(1.0), ".lora_down.weight": torch.tensor(1.0)},
    "alpha of two numbers": GOOD | {".alpha": random(2)},
    "alpha NaN": GOOD | {".alpha": torch.tensor(math.nan)},
    "alpha infinite": GOOD | {".alpha": torch.tensor(math.inf)},
    "NaN": {name: tensor * math.nan for name, tensor in GOOD.items()},
    "infinite": {name: tensor * math.inf for name, tensor in GOOD.items()},
    "too large a product": {name: tensor * 1e30 for name, tensor in GOOD.items()},
    "a core that does not fit": GOOD | {".lora_mid.weight": random(3, 3, 3, 3)},
    "only zeros": {name: tensor * 0 for name, tensor in GOOD.items()},
    "only alpha": {".alpha": torch.tensor(1.0)},
    "LoHa without a half": {name: t for name, t in loha(*LINEAR).items() if "w2" not in name},
    "LoHa of a huge rank": {f".hada_w{n}_{p}": random(*s) for n in (1, 2) for p, s in
                            (("a", (1280, 4097)), ("b", (4097, 320)))},
    "LoHa with a huge core": {f".hada_{n}": random(*s) for n, s in
                              (("t1", (5000, 1, 1, 1)), ("t2", (5000, 1, 1, 1)), ("w1_a", (5000, 4)),
                               ("w2_a", (5000, 4)), ("w1_b", (1, 4)), ("w2_b", (1, 4)))},
    "LoKr without a factor": {".lokr_w1": random(4, 4)},
    "LoKr of a huge product": {".lokr_w1": random(2000, 2000), ".lokr_w2": random(2000, 2000)},
    "a difference of another shape": {".diff": random(320, 1280)},
    "a difference of whole numbers that overflow": {".diff": torch.full((1280, 320), 2**62)},
    "a bias of another size": {".diff_b": random(3)},
    "OFT of an early LyCORIS": {".oft_diag": random(4, 320, 320)},
    "AdaLoRA": {".lora_A": random(4, 320), ".lora_B": random(1280, 4), ".lora_E": random(4, 1)},
    "a layer that grows": GOOD | {".reshape_weight": torch.tensor([1, 2])},
    "one factor twice": GOOD | {".lora_B.weight": random(1280, 4)},
    "a layer that grows by fractions": GOOD | {".reshape_weight": torch.tensor([1280.0, 320.0])},
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path, sd15, what):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], HOSTILE[what])
    with pytest.raises(DeltaError):
        read_delta(path, sd15[1], density=0.5)


@pytest.mark.parametrize(
    "what, words",
    [("OFT of an early LyCORIS", "OFT"), ("AdaLoRA", "AdaLoRA"), ("a layer that grows", "larger"),
     ("one factor twice", "two tensors for one thing")],
)  # fmt: skip
def test_what_cannot_be_converted_is_called_by_its_name(tmp_path, sd15, what, words):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], HOSTILE[what])
    with pytest.raises(DeltaError, match=words):
        read_delta(path, sd15[1], density=0.5)


@pytest.mark.parametrize("dtype, bits", [("C64", 64), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F4", 4), ("BOOL", 8)])
@pytest.mark.parametrize("part", ["lora_up.weight", "alpha", "reshape_weight"])
def test_numbers_of_strange_kinds_are_read_or_refused(tmp_path, sd15, dtype, bits, part):
    shapes = {"lora_up.weight": [1280, 4], "lora_down.weight": [4, 320], "alpha": [2] if bits == 4 else [],
              "reshape_weight": [2]}  # fmt: skip
    tensors = {}
    for name, shape in shapes.items():
        kind, size = (dtype, bits) if name == part else ("F32", 32)
        tensors[f"{MODULE[2]}.{name}"] = kind, shape, b"\0" * (math.prod(shape) * size // 8)
    if part != "reshape_weight":
        del tensors[f"{MODULE[2]}.reshape_weight"]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_file(tensors, {}))
    with pytest.raises(DeltaError):
        read_delta(path, sd15[1], density=0.5)


def test_a_small_file_that_claims_a_large_tensor_takes_no_memory(tmp_path, sd15):
    """torch.save keeps that all elements are one and the same; nothing uses this one."""
    tensors = {MODULE[2] + part: tensor for part, tensor in lokr(*LINEAR).items()}
    tensors[MODULE[2] + ".lokr_w1_a"] = torch.zeros(1, dtype=torch.float16).expand(2**20, 2**20)
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(DeltaError):
        read_delta(tmp_path / "x.pt", sd15[1], density=0.5)


def test_progress_is_told_and_may_stop_it(tmp_path, sd15):
    path = adapter_file(tmp_path / "x.safetensors", MODULE[2], lora(*LINEAR))
    for density in (0.01, 1.0):
        seen = []
        read_delta(path, sd15[1], density=density, on_progress=lambda done, total: seen.append((done, total)))
        assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_delta(path, sd15[1], density=0.1, on_progress=stop)
