"""SHiRA and Super-Tuning, with files that PEFT itself writes and reads."""

import copy
import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.conversion.read import read_delta
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError
from sara_core.models.base import opened_base
from tests.support.foreign_files import (
    assert_equal_weights, checkpoint_file, pipeline_folder, small_flux, small_sd3, small_unet, weights_of,
)  # fmt: skip

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "time_emb_proj"]
SD3_LAYERS = ["to_q", "to_k", "add_v_proj", "norm_out.linear", "norm1_context.linear"]
FLUX_LAYERS = ["to_k", "proj_mlp", "norm_out.linear", "add_q_proj"]
MODELS = {"UNet": (small_unet, UNET_LAYERS), "SD3": (small_sd3, SD3_LAYERS), "Flux": (small_flux, FLUX_LAYERS)}


def adapter(model, config, folder):
    """An adapter with random values, saved by PEFT, and the model with it merged."""
    torch.manual_seed(3)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    adapted.save_pretrained(folder)
    return adapted.merge_and_unload()


def shira(layers, **options):
    return peft.ShiraConfig(r=2, target_modules=layers, init_weights=False, random_seed=1, **options)


def super_tuning(layers, **options):
    return peft.SupertuningConfig(sparsity=0.95, target_modules=layers, init_weights=False, **options)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("config", [shira, super_tuning])
def test_a_file_of_pefts_does_what_it_does_in_peft(tmp_path, name, config):
    make, layers = MODELS[name]
    base = pipeline_folder(tmp_path / "base", make())
    tuned = adapter(make(), config(layers), tmp_path / "adapter")
    conversion = read_delta(tmp_path / "adapter", base)
    weights = weights_of(base)
    conversion.delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", tuned)))
    assert conversion.lost == 0 and not conversion.left_out


@pytest.mark.parametrize("config", [shira, super_tuning])
def test_the_file_alone_and_the_older_container_are_recognised_too(tmp_path, config):
    base = pipeline_folder(tmp_path / "base", small_unet())
    adapter(small_unet(), config(UNET_LAYERS), tmp_path / "adapter")
    expected = read_delta(tmp_path / "adapter", base).delta
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "any name.pt")
    for path in (file, tmp_path / "any name.pt"):
        delta = read_delta(path, checkpoint_file(tmp_path / "base.safetensors", weights_of(base))).delta
        assert_equal_weights({n: e.values for n, e in delta.entries.items()},
                             {n: e.values for n, e in expected.entries.items()})  # fmt: skip


def test_shira_indices_of_windows_are_float32(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    adapter(small_unet(), shira(UNET_LAYERS), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "windows.safetensors")
    windows, others = (read_delta(tmp_path / name, base).delta for name in ("windows.safetensors", "adapter"))
    assert windows.nnz == others.nnz


def test_super_tuning_without_positions_says_what_to_do(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    adapter(small_unet(), super_tuning(UNET_LAYERS, save_precomputed_indices=False), tmp_path / "without")
    with pytest.raises(DeltaError, match="save_precomputed_indices=True"):
        read_delta(tmp_path / "without", base)


def delta_for(folder, layers, share=0.02, seed=0):
    """A delta with changes in every weight whose name has one of `layers` in it, by diffusers names."""
    generator = torch.Generator().manual_seed(seed)
    with opened_base(folder) as base:
        entries = {}
        for name, shape in base.diffusers_shapes.items():
            if any(layer in name for layer in layers):
                numel = math.prod(shape)
                chosen = torch.randperm(numel, generator=generator)[: max(1, round(share * numel))].sort().values
                values = torch.randn(len(chosen), generator=generator)
                entries[name] = SparseEntry(chosen.to(torch.int32), values, shape)
        return SparseDelta(base.from_diffusers(entries))


@pytest.mark.parametrize("name", MODELS)
def test_peft_loads_what_is_written_and_does_the_same(tmp_path, name):
    make, layers = MODELS[name]
    base = pipeline_folder(tmp_path / "base", make())
    delta = delta_for(base, [f"{layer}.weight" for layer in layers])
    report = write_delta(delta, tmp_path / "adapter", "shira", base)
    adapted = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter")
    tuned = pipeline_folder(tmp_path / "tuned", adapted.merge_and_unload())
    weights = weights_of(base)
    delta.apply_(weights)
    assert_equal_weights(weights, weights_of(tuned))
    assert "Left out" not in report


def test_there_and_back_through_shira_is_the_identity(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_sd3())
    delta = delta_for(base, [f"{layer}.weight" for layer in SD3_LAYERS])
    write_delta(delta, tmp_path / "adapter", "shira", base)
    back = read_delta(tmp_path / "adapter", base).delta
    assert back.entries.keys() == delta.entries.keys()
    for name, entry in delta.entries.items():
        assert torch.equal(back.entries[name].indices, entry.indices)
        assert torch.equal(back.entries[name].values, entry.values)


def test_only_the_deltas_own_layers_are_targets(tmp_path):
    """PEFT takes names in a list for endings: proj_out is also in every single block."""
    base = pipeline_folder(tmp_path / "base", small_flux())
    write_delta(SparseDelta({name: entry for name, entry in delta_for(base, ["proj_out.weight"]).entries.items()
                       if "final_layer" in name}), tmp_path / "adapter", "shira", base)  # fmt: skip
    adapted = peft.PeftModel.from_pretrained(small_flux(), tmp_path / "adapter")
    assert [name for name, _ in adapted.named_parameters() if "shira" in name] == [
        "base_model.model.proj_out.shira_weight.default"
    ]


def test_what_shira_cannot_hold_is_reported_with_its_share(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    delta = delta_for(base, ["to_q.weight", "conv1.weight", "to_out.0.bias"])
    squares = {name: float(entry.values.square().sum()) for name, entry in delta.entries.items()}
    linear = {name for name in squares if name.endswith("to_q.weight")}
    lost = 1 - sum(squares[name] for name in linear) / sum(squares.values())
    report = write_delta(delta, tmp_path / "adapter", "shira", base)
    assert f"{len(squares) - len(linear)} other parameters with {lost:.2%}" in report


def test_names_of_a_usual_model_need_no_base(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_sd3())
    delta = delta_for(base, ["to_q.weight", "norm1_context.linear.weight"])
    write_delta(delta, tmp_path / "with", "shira", base)
    write_delta(delta, tmp_path / "without", "shira")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_a_layer_that_has_no_room_is_named(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    dense, sparse = (delta_for(base, ["attn1.to_q.weight"], 1.0), delta_for(base, ["attn1.to_k.weight"], 0.01))
    with pytest.raises(DeltaError, match="Make the delta sparser"):
        write_delta(dense + sparse, tmp_path / "adapter", "shira", base)
    with pytest.raises(DeltaError, match="Linear layers only"):
        write_delta(delta_for(base, ["conv1.weight"]), tmp_path / "adapter", "shira", base)


LAYER = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
VALUES, ROWS_AND_COLUMNS = torch.ones(3), torch.tensor([[0, 1, 2], [5, 4, 3]], dtype=torch.int32)


def spoiled_shira(**changes):
    tensors = {".shira_weight": VALUES, ".shira_indices": ROWS_AND_COLUMNS}
    tensors |= {f".shira_{part}": tensor for part, tensor in changes.items()}
    return {LAYER + part: tensor for part, tensor in tensors.items() if tensor is not None}


def spoiled_super(**changes):
    tensors = {"values": VALUES, "indices": torch.tensor([7, 3, 5], dtype=torch.int32)} | changes
    return {f"{LAYER}.supertuning_{part}": tensor for part, tensor in tensors.items() if tensor is not None}


HOSTILE = {
    "values missing": spoiled_shira(weight=None),
    "indices missing": spoiled_shira(indices=None),
    "fewer values": spoiled_shira(weight=torch.ones(2)),
    "values in two dimensions": spoiled_shira(weight=torch.ones(1, 3)),
    "values of whole numbers": spoiled_shira(weight=torch.ones(3).long()),
    "indices in one dimension": spoiled_shira(indices=torch.ones(3).int()),
    "indices of three rows": spoiled_shira(indices=torch.ones(3, 3).int()),
    "indices of bytes": spoiled_shira(indices=torch.ones(2, 3).byte()),
    "a row too far": spoiled_shira(indices=torch.tensor([[0, 1, 64], [5, 4, 3]])),
    "a column too far": spoiled_shira(indices=torch.tensor([[0, 1, 2], [5, 4, 64]])),
    "a negative row": spoiled_shira(indices=torch.tensor([[0, -1, 2], [5, 4, 3]])),
    "a negative column": spoiled_shira(indices=torch.tensor([[0, 1, 2], [5, -4, 3]])),
    "a row that overflows": spoiled_shira(indices=torch.tensor([[0, 1, 2**60], [5, 4, 3]])),
    "indices not a number": spoiled_shira(indices=torch.tensor([[0, 1, math.nan], [5, 4, 3]])),
    "twice the same place": spoiled_shira(indices=torch.tensor([[0, 1, 1], [5, 4, 4]])),
    "NaN": spoiled_shira(weight=torch.tensor([1.0, math.nan, 2.0])),
    "infinite": spoiled_shira(weight=torch.tensor([1.0, math.inf, 2.0])),
    "only zeros": spoiled_shira(weight=torch.zeros(3)),
    "a layer the base lacks": {name.replace("attn1", "attn7"): t for name, t in spoiled_shira().items()},
    "a convolution": {name.replace("attentions.0.transformer_blocks.0.attn1.to_q", "resnets.0.conv1"): t
                      for name, t in spoiled_shira().items()},
    "a layer that is trained as a whole": {**spoiled_shira(), "base_model.model.conv_in.weight": torch.ones(2)},
    "super: values missing": spoiled_super(values=None),
    "super: fewer values": spoiled_super(values=torch.ones(2)),
    "super: a position too far": spoiled_super(indices=torch.tensor([1, 2, 64 * 64])),
    "super: a negative position": spoiled_super(indices=torch.tensor([1, 2, -3])),
    "super: twice the same position": spoiled_super(indices=torch.tensor([1, 2, 2])),
    "super: positions in two dimensions": spoiled_super(indices=torch.tensor([[1, 2, 3]])),
    "super: one position of no dimension": spoiled_super(values=torch.ones(1), indices=torch.tensor(3)),
    "super: positions that are no whole numbers": spoiled_super(indices=torch.tensor([1.0, 2.0, 3.0])),
    "super: NaN": spoiled_super(values=torch.tensor([1.0, math.nan, 2.0])),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipeline_folder(tmp_path_factory.mktemp("peft") / "base", small_unet())


def test_the_untouched_files_are_sound(tmp_path, base):
    for tensors in (spoiled_shira(), spoiled_super()):
        save_file(tensors, tmp_path / "x.safetensors")
        (entry,) = read_delta(tmp_path / "x.safetensors", base).delta.entries.values()
        assert entry.indices.tolist() == ([5, 68, 131] if ".shira_weight" in "".join(tensors) else [3, 5, 7])


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path, base, what):
    save_file(HOSTILE[what], tmp_path / "x.safetensors")
    with pytest.raises(DeltaError):
        read_delta(tmp_path / "x.safetensors", base)


def test_the_written_config_is_what_peft_expects(tmp_path):
    base = pipeline_folder(tmp_path / "base", small_unet())
    write_delta(delta_for(base, ["to_q.weight"]), tmp_path / "adapter", "shira", base)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SHIRA" and config["r"] >= 1
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").r == config["r"]
