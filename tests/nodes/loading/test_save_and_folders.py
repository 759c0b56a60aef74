"""SaRA Save and the folders: numbered, never overwritten, inside the output folder, offered by every loader."""

import os
from pathlib import Path

import pytest
import torch


def saved_files(comfy, folder="sara"):
    return sorted(path.name for path in (comfy.base / "output" / folder).iterdir())


def test_saved_files_are_numbered_named_and_exact(comfy, pack, delta):
    outputs, ui = [], []
    for _ in range(2):
        result = comfy.execute("SaRASave", delta=delta, filename_prefix="sara/numbered")
        outputs.append(result.outputs[0])
        ui.append(result.ui)
    assert outputs == [delta, delta]
    names = [f"sara/numbered_0000{number}_.safetensors" for number in (1, 2)]
    assert [[text for text in entry["text"]] for entry in ui] == [[name] for name in names]
    loaded = pack.SparseDelta.load(comfy.base / "output" / names[0])
    assert loaded.entries.keys() == delta.entries.keys()
    for name, (indices, values, shape) in loaded.entries.items():
        assert shape == delta.entries[name].shape and torch.equal(indices, delta.entries[name].indices)
        assert torch.equal(values, delta.entries[name].values)


def test_defaults_are_fp32_in_output_sara(comfy, pack, delta):
    comfy.execute("SaRASave", delta=delta)
    loaded = pack.SparseDelta.load(comfy.base / "output" / "sara" / "delta_00001_.safetensors")
    assert {entry.values.dtype for entry in loaded.entries.values()} == {torch.float32}


def test_bf16_is_smaller(comfy, pack, delta):
    for values in ("fp32", "bf16"):
        comfy.execute("SaRASave", delta=delta, filename_prefix=f"sara/{values}", values=values)
    sizes = [(comfy.base / "output" / "sara" / f"{v}_00001_.safetensors").stat().st_size for v in ("fp32", "bf16")]
    assert abs(sizes[0] - sizes[1] - 2 * delta.nnz) < 1000  # the headers' numbers differ in length


def test_a_number_that_is_taken_is_never_overwritten(comfy, delta, monkeypatch):
    folder = comfy.base / "output" / "sara"
    (folder / "taken_00001_.safetensors").write_bytes(b"mine")
    # On a disk that takes "Taken" and "taken" for one name the host finds the number 1 free.
    monkeypatch.setattr(
        comfy.folder_paths, "get_save_image_path", lambda prefix, output: (str(folder), "taken", 1, "sara", prefix)
    )
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/taken")
    assert (folder / "taken_00001_.safetensors").read_bytes() == b"mine"
    assert (folder / "taken_00002_.safetensors").is_file()


@pytest.mark.parametrize("prefix", ["../escaped", "sara/../../escaped", "/tmp/escaped"])
def test_a_name_that_leaves_the_output_folder_is_refused(comfy, pack, delta, prefix):
    with pytest.raises(pack.DeltaError, match="out of ComfyUI's output folder.*sara/delta"):
        comfy.execute("SaRASave", delta=delta, filename_prefix=prefix)
    assert not list(comfy.base.glob("escaped*")) and not list(Path("/tmp").glob("escaped_0*"))


@pytest.mark.parametrize("prefix", ["sara/a\0b", "sara/\ud800"])
def test_a_name_that_no_file_can_have_is_refused(comfy, pack, delta, prefix):
    with pytest.raises(pack.DeltaError, match="no file's name can have"):
        comfy.execute("SaRASave", delta=delta, filename_prefix=prefix)


def test_a_folder_that_cannot_be_made_is_named(comfy, pack, delta):
    (comfy.base / "output" / "file").write_bytes(b"")
    with pytest.raises(pack.DeltaError, match="'file/delta' cannot be used"):
        comfy.execute("SaRASave", delta=delta, filename_prefix="file/delta")


def test_a_full_disk_loses_nothing(comfy, pack, delta, monkeypatch):
    import errno

    atomic = comfy.pack_module("sara_core.files.atomic")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    before = saved_files(comfy)
    with pytest.raises(pack.DeltaError, match="disk is full"):
        comfy.execute("SaRASave", delta=delta)
    assert saved_files(comfy) == before


def offered(comfy, node_id, name):
    """The choices of a node's menu, as the page gets them."""
    definition = comfy.node_class(node_id).INPUT_TYPES()
    kind, *options = {**definition["required"], **definition.get("optional", {})}[name]
    return kind if isinstance(kind, list) else options[0]["options"]


def test_saved_and_placed_files_are_offered_by_all_loaders(comfy, delta):
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/deep/offered")
    delta.save(comfy.base / "models" / "sara" / "placed.safetensors")
    (comfy.base / "models" / "sara" / "notes.txt").write_text("not a delta")
    (comfy.base / "models" / "sara" / "old.pt").write_text("not a delta")
    for node_id, name in (("SaRALoader", "sara_name"), ("LoraLoader", "lora_name")):
        names = offered(comfy, node_id, name)
        assert {os.path.join("deep", "offered_00001_.safetensors"), "placed.safetensors"} <= set(names)
        assert "notes.txt" not in names
    assert "old.pt" not in offered(comfy, "SaRALoader", "sara_name")


def test_folders_of_extra_model_paths_are_honoured(comfy, pack, tmp_path, monkeypatch):
    folder_paths = comfy.folder_paths
    folders = comfy.pack_module("nodes.host.folders")
    known = {name: (list(old[0]), set(old[1])) for name, old in folder_paths.folder_names_and_paths.items()}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    # What the host does with `sara:` in extra_model_paths.yaml, before it loads node packs.
    del known["sara"]
    folder_paths.add_model_folder_path("sara", str(tmp_path))
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    (tmp_path / "elsewhere.txt").write_bytes(b"")
    folders.register_folders()
    folders.register_folders()
    assert folder_paths.get_folder_paths("sara") == [
        str(tmp_path), str(comfy.base / "models" / "sara"), str(comfy.base / "output" / "sara"),
    ]  # fmt: skip
    assert folder_paths.get_folder_paths("loras").count(str(tmp_path)) == 1
    assert "elsewhere.safetensors" in folders.delta_names() and "elsewhere.txt" not in folders.delta_names()
    assert folders.delta_path("elsewhere.safetensors") == tmp_path / "elsewhere.safetensors"


@pytest.mark.parametrize("node_id", ["SaRALoader", "SaRAApply", "SaRASave", "SaRABake"])
def test_every_input_and_output_is_explained(comfy, node_id):
    node = comfy.node_class(node_id)
    definition = node.INPUT_TYPES()
    for name, (_, *options) in {**definition["required"], **definition.get("optional", {})}.items():
        assert options[0]["tooltip"].endswith("."), name
    schema = node.GET_SCHEMA()
    assert all(output.tooltip.endswith(".") for output in schema.outputs)
    assert schema.description.endswith(".") and schema.search_aliases
