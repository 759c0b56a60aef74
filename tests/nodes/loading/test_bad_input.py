"""What does not fit or is damaged, through our loader and the stock ones: a clear error, and the model as it was."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.toy_models import assert_same_bits, loaded_weights, sd15_model, unload

OUTSIDE = ["../escaped.safetensors", "missing.safetensors", "/etc/passwd", "good.safetensors\0", "", "notes.txt",
           "x/../good.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_are_not_in_the_menu_are_refused(comfy, model, pack, delta, saved, name):
    delta.save(comfy.base / "models" / "escaped.safetensors")
    (comfy.base / "models" / "sara" / "notes.txt").write_text("not a delta")
    node = comfy.node_class("SaRALoader")
    assert "There is no file" in node.validate_inputs(sara_name=name)
    with pytest.raises(pack.DeltaError, match="There is no file"):
        comfy.execute("SaRALoader", model=model, sara_name=name, strength=1.0)


def test_a_known_name_and_a_linked_one_pass_validation(comfy, saved):
    node = comfy.node_class("SaRALoader")
    assert node.validate_inputs(sara_name=saved) is True and node.validate_inputs(sara_name=None) is True


def refused(comfy, model, pack, delta, words, error=None):
    """Both nodes refuse the delta with these words, and the model stays as it is."""
    with pytest.raises(error or pack.DeltaError, match=words):
        comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0)
    assert not model.patches


def test_another_family_is_named(comfy, model, pack, delta):
    renamed = {f"{name}.only_in_sdxl": entry for name, entry in delta.entries.items()}
    refused(comfy, model, pack, pack.SparseDelta(renamed, {"sara.family": "SDXL"}), "is for SDXL, the model is SD1.5")
    name, entry = next(iter(delta.entries.items()))
    wider = {name: entry._replace(shape=(2 * entry.shape[0], *entry.shape[1:]))}
    refused(comfy, model, pack, pack.SparseDelta(wider, {"sara.family": "SDXL"}), "is for SDXL, the model is SD1.5")


def test_missing_keys_and_other_shapes_are_named(comfy, model, pack, delta):
    some = dict(delta.entries)
    some["diffusion_model.no_such.weight"] = some.pop("diffusion_model.out.2.weight")
    refused(comfy, model, pack, pack.SparseDelta(some), "1 of the delta's .*SD1.5.*diffusion_model.no_such.weight")
    foreign = {f"vae.{name}": entry for name, entry in delta.entries.items()}
    refused(comfy, model, pack, pack.SparseDelta(foreign), "None of the delta's .*SD1.5 model")
    bias = delta.entries["diffusion_model.out.2.bias"]._replace(shape=(5,))
    refused(comfy, model, pack, pack.SparseDelta({"diffusion_model.out.2.bias": bias}), r"\[4\].*\[5\]")


def test_a_family_name_alone_does_not_stop_a_delta_that_fits(comfy, model, pack, delta):
    same = pack.SparseDelta(delta.entries, {"sara.family": "My SD1.5 finetune"})
    assert comfy.execute("SaRAApply", model=model, delta=same, strength=1.0).outputs[0].patches


class Packed(torch.Tensor):
    """Weights of a pack that nobody here knows, as bitsandbytes' are."""


def test_weights_of_an_unknown_kind_are_refused_by_name(comfy, pack, delta):
    model = sd15_model()
    layer = model.model.diffusion_model.out[2]
    layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Packed), requires_grad=False)
    refused(comfy, model, pack, delta, "out.2.weight' is stored as Packed.*in fp8.*GGUF", pack.UnsupportedModelError)


def test_packed_layers_without_weights_are_refused_by_name(comfy, pack, delta):
    model = sd15_model()
    layer = model.model.diffusion_model.out[2]
    layer.qweight = torch.nn.Parameter(torch.zeros(4, dtype=torch.int32), requires_grad=False)
    del layer.weight
    refused(comfy, model, pack, delta, "packed by another pack.*out.2.qweight.*in fp8", pack.UnsupportedModelError)


def spoiled(path, **changes):
    """The file with tensors of one entry replaced."""
    tensors = load_file(path)
    stem = "diffusion_model.out.2"
    for part, change in changes.items():
        tensors[f"{stem}.sara1_{part}"] = change(tensors[f"{stem}.sara1_{part}"])
    spoiled_path = path.with_name("spoiled.safetensors")
    save_file(tensors, spoiled_path)
    return spoiled_path.name


def with_nan(values):
    return torch.cat([values[:-1], values.new_tensor([float("nan")])])


# Unsorted and duplicated positions cannot be written down in this format: tests/core/delta/test_file_v1_hostile.py
# shows it.
SPOILED = {
    "index cut short": {"index": lambda index: index[:-3].clone()},
    "index of another entry": {"index": lambda index: torch.flip(index, (0,))},
    "index beyond the end": {"head": lambda head: torch.tensor([0, head[1], 1, int(head[1])])},
    "duplicated count": {"head": lambda head: torch.tensor([0, 2 * head[1], *head[2:]])},
    "NaN": {"values": with_nan},
    "values missing": {"values": lambda values: values[:-1].clone()},
    "negative shape": {"head": lambda head: torch.tensor([0, head[1], -4, -320, 3, 3])},
}


@pytest.mark.parametrize("what", SPOILED)
@pytest.mark.parametrize("node", ["SaRALoader", "LoraLoader", "LoraLoaderModelOnly"])
def test_damaged_files_are_refused_by_every_loader(comfy, model, pack, saved, what, node):
    name = spoiled(comfy.base / "models" / "sara" / saved, **SPOILED[what])
    inputs = {"SaRALoader": {"sara_name": name, "strength": 1.0}}.get(node, {"lora_name": name, "strength_model": 1.0})
    if node == "LoraLoader":
        inputs["clip"] = None
    with pytest.raises(pack.DeltaError, match="diffusion_model.out.2.*damaged"):
        comfy.execute(node, model=model, **inputs)
    assert not model.patches


def test_what_is_too_large_for_the_models_precision_is_refused(comfy, pack, models):
    model, _ = models(torch.float16)
    name, shape = "diffusion_model.out.2.bias", (4,)
    entry = pack.SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([40000.0]), shape)
    change = pack.SparseDelta({name: entry})
    with pytest.raises(pack.DeltaError, match="At strength 2 .* 1 element of 'diffusion_model.out.2.bias' larger than"):
        comfy.execute("SaRAApply", model=model, delta=change, strength=2.0)
    assert not model.patches
    assert comfy.execute("SaRAApply", model=model, delta=change, strength=1.5).outputs[0].patches
    unload()


def test_the_stock_loader_refuses_two_names_of_a_weight(comfy, model, pack, saved):
    path = comfy.base / "models" / "sara" / "twice.safetensors"
    tensors = load_file(path.with_name(saved))
    for part in ("head", "index", "values"):
        tensors[f"diffusion_model.out.2.weight.sara1_{part}"] = tensors[f"diffusion_model.out.2.sara1_{part}"].clone()
    tensors["diffusion_model.out.2.weight.sara1_head"][0] = 1
    save_file(tensors, path)
    for node, file in [("LoraLoaderModelOnly", "lora_name"), ("SaRALoader", "sara_name")]:
        with pytest.raises(pack.DeltaError, match="one weight twice"):
            comfy.execute(node, model=model, **{file: path.name})


@pytest.mark.parametrize("node", ["SaRALoader", "LoraLoaderModelOnly"])
def test_truncated_files_are_refused_by_every_loader(comfy, model, pack, saved, models, node):
    folder = comfy.base / "models" / "sara"
    whole = (folder / saved).read_bytes()
    base = models()[1]
    for place, length in enumerate([0, 1, 7, 8, 9, 100, 5000, len(whole) // 2, len(whole) - 1]):
        # The stock loader caches by path alone.
        cut = folder / f"cut_{place}.safetensors"
        cut.write_bytes(whole[:length])
        with pytest.raises(pack.DeltaError if node == "SaRALoader" else Exception):
            comfy.execute(node, model=model, **{"lora_name" if "Lora" in node else "sara_name": cut.name})
        cut.unlink()
    assert not model.patches
    assert_same_bits(loaded_weights(model), base)


def test_an_incomplete_entry_is_refused_by_the_stock_loader(comfy, model, pack, saved):
    path = comfy.base / "models" / "sara" / "incomplete.safetensors"
    tensors = load_file(path.with_name(saved))
    del tensors["diffusion_model.out.2.sara1_index"]
    save_file(tensors, path)
    with pytest.raises(pack.DeltaError, match="diffusion_model.out.2' is incomplete"):
        comfy.execute("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0)


def test_another_shape_through_the_stock_loader_is_refused_and_leaves_the_model(comfy, model, pack, delta, models):
    """The stock loader never shows us the model: the mismatch comes to light when the weights are patched."""
    entries = dict(delta.entries)
    name = "diffusion_model.out.2.weight"
    indices, values, shape = entries[name]
    entries[name] = pack.SparseEntry(indices, values, (shape[0] + 1, *shape[1:]))
    path = comfy.base / "models" / "sara" / "wider.safetensors"
    pack.SparseDelta(entries).save(path)
    patched = comfy.execute("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0).outputs[0]
    with pytest.raises(pack.DeltaError, match=r"out.2.weight.*\[4, 320, 3, 3\].*\[5, 320, 3, 3\]"):
        loaded_weights(patched)
    assert_same_bits(loaded_weights(model), models()[1])


def test_a_stock_loader_without_a_matching_key_changes_nothing(comfy, model, pack, delta, models, caplog):
    path = comfy.base / "models" / "sara" / "foreign.safetensors"
    pack.SparseDelta({f"other.{name}": entry for name, entry in delta.entries.items()}).save(path)
    patched = comfy.execute("LoraLoaderModelOnly", model=model, lora_name=path.name, strength_model=1.0).outputs[0]
    assert "lora key not loaded: other.diffusion_model" in caplog.text
    assert_same_bits(loaded_weights(patched), models()[1])
