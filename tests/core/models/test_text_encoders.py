"""Text encoders inside checkpoint files: baked to the bit, whatever the file calls them, with the host as the judge."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, SparseDelta, SparseEntry
from sara_core.delta.describe import describe
from sara_core.models.bake import bake
from sara_core.models.base import opened_base
from sara_core.names.text_checkpoints import text_parts
from tests.support import text_encoders
from tests.support.family_models import FAMILIES
from tests.support.toy_models import assert_same_bits, changed, delta_entries

LAYER = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def checkpoints(comfy, tmp_path_factory):
    """A family's checkpoint file, made once, without all but one weight of the diffusion model."""
    made = {}

    def checkpoint(family):
        if family not in made:
            unet = next(iter(FAMILIES["SD1.5"].state_dict()))
            tensors = {f"model.diffusion_model.{unet}": torch.ones(4, 4)}
            tensors |= text_encoders.stored(family, text_encoders.text_state_dict(family))
            made[family] = tmp_path_factory.mktemp("text") / f"{family}.safetensors"
            save_file(tensors, made[family])
        return made[family]

    return checkpoint


def delta_of(family, chosen=lambda name: True):
    """Of all weights that the family's checkpoints have of its text encoders."""
    beside = ("clip_l.logit_scale", "clip_l.transformer.text_projection.weight")
    weights = {f"text_encoders.{name}": weight for name, weight in text_encoders.text_state_dict(family).items()
               if name not in beside and chosen(name)}  # fmt: skip
    return SparseDelta({name: SparseEntry(*entry) for name, entry in delta_entries(weights).items()})


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_every_weight_is_baked_to_the_bit_and_the_others_keep_their_bytes(checkpoints, tmp_path, family, strength):
    """The host renames the weights with the delta in them; the file that was baked has to be that."""
    delta = delta_of(family, lambda name: "layers.1." not in name)
    weights = text_encoders.text_state_dict(family)
    entries = {name.removeprefix("text_encoders."): entry for name, entry in delta.entries.items()}
    with_delta = {name: changed(weight, entries[name], strength) if name in entries else weight
                  for name, weight in weights.items()}  # fmt: skip
    report = bake(checkpoints(family), tmp_path / "baked.safetensors", delta, strength)
    assert report.changes == delta.nnz and not report.left_out
    baked, before = load_file(tmp_path / "baked.safetensors"), load_file(checkpoints(family))
    expected = text_encoders.stored(family, with_delta)
    assert_same_bits(baked, {name: expected.get(name, weight) for name, weight in before.items()})
    assert any(not torch.equal(baked[name], weight) for name, weight in before.items())


def test_old_files_of_sd15_lack_a_part_of_the_names(checkpoints, tmp_path):
    old = {name.replace("transformer.text_model.", "transformer."): tensor
           for name, tensor in load_file(checkpoints("SD1.5")).items()}  # fmt: skip
    save_file(old, tmp_path / "old.safetensors")
    delta = delta_of("SD1.5")
    bake(tmp_path / "old.safetensors", tmp_path / "baked.safetensors", delta)
    baked = load_file(tmp_path / "baked.safetensors")["cond_stage_model.transformer.encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(baked, changed(text_encoders.text_state_dict("SD1.5")[LAYER.removeprefix("text_encoders.")],
                                      delta.entries[LAYER], 1.0))  # fmt: skip


@pytest.mark.parametrize("prefix, width, encoder", [("cond_stage_model.model.", 1024, "clip_h"),
                                                    ("conditioner.embedders.0.model.", 1024, "clip_h"),
                                                    ("conditioner.embedders.0.model.", 1280, "clip_g")])  # fmt: skip
def test_the_one_encoder_of_sd2_and_the_refiner_is_told_by_its_width(prefix, width, encoder):
    shapes = {f"{prefix}ln_final.weight": (width,), f"{prefix}text_projection": (width, width)}
    assert set(text_parts(shapes)) == {f"text_encoders.{encoder}.transformer.text_model.final_layer_norm.weight",
                                       f"text_encoders.{encoder}.transformer.text_projection.weight"}  # fmt: skip


def test_names_of_files_for_sd3_and_flux_are_a_deltas_own(tmp_path):
    name = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight"
    save_file({"model.diffusion_model.x.weight": torch.ones(2, 2), name: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    entry = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (2, 2))
    bake(tmp_path / "a.safetensors", tmp_path / "b.safetensors", SparseDelta({name: entry}))
    assert load_file(tmp_path / "b.safetensors")[name].tolist() == [[1, 1], [1, 1.5]]


def test_an_encoder_that_is_not_in_the_file_is_left_out_in_words(checkpoints, tmp_path):
    entry = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))
    save_file({"model.diffusion_model.x.weight": torch.ones(4, 4)}, tmp_path / "alone.safetensors")
    both = SparseDelta({"diffusion_model.x.weight": entry, LAYER: entry})
    report = bake(tmp_path / "alone.safetensors", tmp_path / "baked.safetensors", both)
    assert report.text() == "Left out: the change of CLIP-L, which 'alone.safetensors' does not have."
    with pytest.raises(DeltaError, match="Nothing would be baked.*CLIP-L"):
        bake(tmp_path / "alone.safetensors", tmp_path / "nothing.safetensors", SparseDelta({LAYER: entry}))
    with pytest.raises(DeltaError, match="layers.40.*Use the checkpoint"):
        bake(checkpoints("SD1.5"), tmp_path / "nothing.safetensors",
             SparseDelta({LAYER.replace("layers.0", "layers.40"): entry}))  # fmt: skip
    assert not (tmp_path / "nothing.safetensors").exists()


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_a_base_has_its_text_encoders_by_a_deltas_names(checkpoints, family):
    with opened_base(checkpoints(family)) as base:
        for name, weight in text_encoders.text_state_dict(family).items():
            if (own := f"text_encoders.{name}") in base.text_encoders.shapes:
                assert base.text_encoders.shapes[own] == tuple(weight.shape)
                assert torch.equal(base.text_encoders.weight(own), weight)
        assert len(base.text_encoders.shapes) > 40


def test_a_report_has_a_line_for_each_encoder():
    entry = SparseEntry(torch.tensor([1, 3], dtype=torch.int32), torch.tensor([0.5, 1.0]), (4, 4))
    facts = describe(SparseDelta({"diffusion_model.x.weight": entry, LAYER: entry, LAYER.replace("0", "1"): entry}))
    assert facts.encoders == {"CLIP-L": (4, 2)}
    lines = [line.split() for line in facts.text().splitlines()]
    assert ["CLIP-L", "4", "changes", "in", "2", "weights"] in lines
    assert ["diffusion", "model", "2", "changes", "in", "1", "weights"] in lines
    assert "CLIP" not in describe(SparseDelta({"diffusion_model.x.weight": entry})).text()


def test_a_diffusion_model_alone_takes_its_part():
    entry = SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))
    weights = {"x.weight": torch.ones(4, 4)}
    with pytest.warns(UserWarning, match="Left out: the change of CLIP-L"):
        handle = SparseDelta({"diffusion_model.x.weight": entry, LAYER: entry}).apply_(weights)
    assert weights["x.weight"].view(-1)[3] == 1.5
    handle.remove()
    whole = {"x.weight": torch.ones(4, 4), LAYER: torch.ones(4, 4)}
    SparseDelta({"diffusion_model.x.weight": entry, LAYER: entry}).apply_(whole)
    assert whole[LAYER].view(-1)[3] == whole["x.weight"].view(-1)[3] == 1.5
