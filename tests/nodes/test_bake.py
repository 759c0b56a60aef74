"""SaRA Bake offers diffusion models too, under names that mean one file; the result is where a loader looks for it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

NAME, BOTH = "alone.safetensors", "both.safetensors"


@pytest.fixture
def files(comfy):
    """One diffusion model that is alone with its name, and one whose name a checkpoint has."""
    paths = {("diffusion_models", NAME): 1.0, ("diffusion_models", BOTH): 2.0, ("checkpoints", BOTH): 3.0}
    for (kind, name), value in paths.items():
        path = comfy.base / "models" / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"a.weight": torch.full((4, 4), value)}, path)
    yield
    for kind, name in paths:
        (comfy.base / "models" / kind / name).unlink()


@pytest.fixture
def delta(comfy):
    classes = comfy.pack_module("sara_core.delta")
    entry = classes.SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 4))
    return classes.SparseDelta({"diffusion_model.a.weight": entry})


def options(comfy, node, name):
    inputs = comfy.node_class(node).define_schema().inputs
    return next(one.options for one in inputs if one.id == name)


def baked(comfy, delta, name, prefix):
    (filename,) = comfy.execute("SaRABake", ckpt_name=name, delta=delta, strength=1.0, filename_prefix=prefix).outputs
    return filename, load_file(comfy.base / "output" / filename)["a.weight"].view(-1)[[0, 3]].tolist()


def test_diffusion_models_are_offered_with_their_folder_and_checkpoints_as_before(comfy, files):
    offered = options(comfy, "SaRABake", "ckpt_name")
    assert {f"diffusion_models/{NAME}", f"diffusion_models/{BOTH}", BOTH} <= set(offered) and NAME not in offered
    assert len(offered) == len(set(offered))


@pytest.mark.parametrize("name, value", [(f"diffusion_models/{NAME}", 1.0), (f"diffusion_models/{BOTH}", 2.0),
                                         (BOTH, 3.0)])  # fmt: skip
def test_a_name_means_the_file_it_says(comfy, files, delta, name, value):
    assert baked(comfy, delta, name, "checkpoints/named")[1] == [value, value + 0.5]


def test_with_the_default_prefix_it_lies_where_its_loader_finds_it(comfy, files, delta):
    assert baked(comfy, delta, f"diffusion_models/{NAME}", "checkpoints/baked")[0].startswith("diffusion_models/baked_")
    assert baked(comfy, delta, BOTH, "checkpoints/baked")[0].startswith("checkpoints/baked_")
    assert baked(comfy, delta, f"diffusion_models/{NAME}", "checkpoints/mine")[0].startswith("checkpoints/mine_")


@pytest.mark.parametrize("node, name", [("SaRAExtract", "base_name"), ("SaRAConvert", "base_name")])
def test_a_diffusion_model_whose_name_a_checkpoint_has_is_offered_elsewhere_too(comfy, files, node, name):
    assert {NAME, BOTH, f"diffusion_models/{BOTH}"} <= set(options(comfy, node, name))
    path = comfy.pack_module("nodes.host.folders").model_path
    kinds = {name: path(name).parent.name for name in (NAME, BOTH, f"diffusion_models/{BOTH}")}
    assert list(kinds.values()) == ["diffusion_models", "checkpoints", "diffusion_models"]


@pytest.mark.parametrize(
    "name", ["diffusion_models/none.safetensors", "diffusion_models/../checkpoints/both.safetensors", "none", ""]
)
def test_names_that_are_not_in_the_menu_are_refused(comfy, files, delta, name):
    errors = comfy.pack_module("sara_core.errors")
    with pytest.raises(errors.DeltaError, match="There is no file"):
        comfy.execute("SaRABake", ckpt_name=name, delta=delta, strength=1.0, filename_prefix="checkpoints/x")


FLOAT8 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    "precision, dtype",
    [({}, FLOAT8), ({"precision": "as the file"}, FLOAT8), ({"precision": "fp16"}, torch.float16)],
)
def test_quantised_weights_keep_their_format_or_not(comfy, delta, precision, dtype):
    path = comfy.base / "models" / "checkpoints" / "small.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, path)
    values = {"delta": delta, "strength": 1.0, "filename_prefix": "checkpoints/small", **precision}
    (filename,) = comfy.execute("SaRABake", ckpt_name=path.name, **values).outputs
    weight = load_file(comfy.base / "output" / filename)["a.weight"]
    assert weight.dtype == dtype and weight.float().view(-1)[[0, 3]].tolist() == [1.0, 1.5]


def test_gguf_files_are_offered_once_something_loads_them(comfy, delta, monkeypatch):
    gguf = pytest.importorskip("gguf")
    path = comfy.base / "models" / "diffusion_models" / "packed.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch="flux")
    packed = gguf.quants.quantize(torch.ones(4, 32).numpy(), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("a.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name, classes = "diffusion_models/packed.gguf", comfy.pack_module("sara_core.delta")
    assert name not in options(comfy, "SaRABake", "ckpt_name")
    folders = comfy.folder_paths.folder_names_and_paths
    monkeypatch.setitem(folders, "unet_gguf", (folders["diffusion_models"][0], {".gguf"}))
    assert name in options(comfy, "SaRABake", "ckpt_name")
    entry = classes.SparseEntry(torch.tensor([3], dtype=torch.int32), torch.tensor([0.5]), (4, 32))
    values = {"delta": classes.SparseDelta({"a.weight": entry}), "strength": 1.0, "precision": "bf16"}
    (filename,) = comfy.execute("SaRABake", ckpt_name=name, filename_prefix="checkpoints/baked", **values).outputs
    assert filename.startswith("diffusion_models/baked_")
    weight = load_file(comfy.base / "output" / filename)["a.weight"]
    assert weight.dtype == torch.bfloat16 and weight.view(-1)[[0, 3]].tolist() == [1.0, 1.5]
