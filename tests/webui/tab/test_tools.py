"""Merge, Bake, Extract, Inspect and Convert from the tab: names in, reports out, and what the library makes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import DeltaError, SaRAError, SparseDelta, SparseEntry
from sara_webui.tab.tools import EVERYTHING, Tools

LAYER = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


class Files:
    """tools.Files in a folder."""

    def __init__(self, folder):
        self.folder, self.refreshed = folder, 0
        for name in ("networks", "checkpoints"):
            (folder / name).mkdir()

    def networks(self):
        return [self.folder / "networks"]

    def deltas(self):
        return {path.stem: path for path in self.networks()[0].glob("*.safetensors") if path.stem != "lora"}

    def checkpoints(self):
        return {path.name: path for path in self.checkpoint_folder().iterdir()}

    def checkpoint_folder(self):
        return self.folder / "checkpoints"

    def refresh(self):
        self.refreshed += 1


def delta(*values):
    values = torch.tensor(values)
    entry = SparseEntry(torch.arange(len(values), dtype=torch.int32), values, (4, 4, 3, 3))
    return SparseDelta({LAYER.removeprefix("model."): entry})


@pytest.fixture
def tools(tmp_path):
    torch.manual_seed(0)
    files = Files(tmp_path)
    base = torch.randn(4, 4, 3, 3)
    save_file({LAYER: base}, files.checkpoint_folder() / "base.safetensors")
    tuned = base.clone()
    tuned.view(-1)[:3] += torch.tensor([1.0, 2.0, 3.0])
    save_file({LAYER: tuned}, files.checkpoint_folder() / "tuned.safetensors")
    delta(1.0, 2.0).save(files.networks()[0] / "one.safetensors")
    delta(0.5, 0.0, 4.0).save(files.networks()[0] / "two.safetensors")
    return Tools(files)


def made(tools, name):
    return SparseDelta.load(tools.files.networks()[0] / f"{name}.safetensors")


def merge(tools, names=("one", "two"), weights="", target="both"):
    return tools.merge(list(names), weights, "sum", 0.5, "total", 0, "all blocks", "", target)


def test_inspect_says_what_a_delta_is(tools):
    text, picture = tools.inspect("one")
    assert "one.safetensors" in text and "2 changes" in text
    assert picture.width > 0 and len(picture.getcolors(2**16)) > 2


@pytest.mark.parametrize(
    "weights, wanted", [("", [1.5, 2.0, 4.0]), ("2", [3.0, 4.0, 8.0]), ("1, -1", [0.5, 2.0, -4.0])]
)
def test_merge_adds_weighted_deltas_under_a_new_name(tools, weights, wanted):
    text, picture = merge(tools, weights=weights)
    assert text.startswith("Saved as both.safetensors.") and len(picture.getcolors(2**16)) > 2
    entry, = made(tools, "both").entries.values()
    assert entry.values.tolist() == wanted and tools.files.refreshed == 1


def test_bake_writes_a_new_checkpoint(tools):
    tools.bake("base.safetensors", "one", 0.5, "as the file", "baked")
    base, baked = (load_file(tools.files.checkpoint_folder() / f"{name}.safetensors") for name in ("base", "baked"))
    change = (baked[LAYER] - base[LAYER]).view(-1)
    assert torch.allclose(change[:2], torch.tensor([0.5, 1.0])) and not change[2:].any()


@pytest.mark.parametrize("select_by, amount, kept", [("count", 2.0, 2), ("density", 0.01, 1), (EVERYTHING, 0.0, 3)])
def test_extract_keeps_the_largest_changes(tools, select_by, amount, kept):
    report = tools.extract("base.safetensors", "tuned.safetensors", select_by, amount, "found")
    assert made(tools, "found").nnz == kept and report.picture is not None


def test_a_network_and_a_checkpoint_of_one_name_are_told_apart(tools):
    (tools.files.checkpoint_folder() / "one.safetensors").write_bytes(b"another")
    both = [path for name, path in tools.foreign().items() if name.endswith("one.safetensors")]
    assert [path.parent.name for path in both] == ["networks", "checkpoints"]


def test_convert_writes_another_programs_file_and_reads_it_again(tools):
    said = tools.convert("one.safetensors", "", 0.0, "diff", 64, "comfyui", "lora")
    assert "lora.safetensors" in tools.foreign() and said.text
    tools.convert("lora.safetensors", "base.safetensors", 0.0, "sara", 64, "comfyui", "again")
    entry, = made(tools, "again").entries.values()
    assert entry.values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "work",
    [
        lambda tools: tools.inspect("../one"),
        lambda tools: tools.inspect(None),
        lambda tools: tools.inspect(""),
        lambda tools: merge(tools, names=[]),
        lambda tools: merge(tools, weights="1, 2, 3"),
        lambda tools: merge(tools, weights="many"),
        lambda tools: merge(tools, target=""),
        lambda tools: merge(tools, target="../x"),
        lambda tools: merge(tools, target="one"),
        lambda tools: tools.bake("/etc/passwd", "one", 1.0, "as the file", "x"),
        lambda tools: tools.bake("base.safetensors", "one", 1.0, "as the file", "tuned"),
        lambda tools: tools.extract("base.safetensors", "tuned.safetensors", "colour", 1, "x"),
        lambda tools: tools.convert("one.safetensors", "no", 0.0, "sara", 64, "comfyui", "x"),
        lambda tools: tools.convert("one.safetensors", "", 0.0, "exe", 64, "comfyui", "x"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(tools, work):
    before = sorted(path.name for path in tools.files.folder.rglob("*"))
    with pytest.raises(SaRAError) as error:
        work(tools)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert sorted(path.name for path in tools.files.folder.rglob("*")) == before


def test_nothing_is_replaced_though_it_came_in_between(tools, monkeypatch):
    save = SparseDelta.save

    def late(delta, path, *given, **options):
        path.write_bytes(b"another")
        save(delta, path, *given, **options)

    monkeypatch.setattr(SparseDelta, "save", late)
    with pytest.raises(DeltaError, match="not replaced"):
        merge(tools)


def test_a_name_that_is_taken_is_said_before_the_work(tools, monkeypatch):
    monkeypatch.setattr("sara_webui.tab.tools.bake", lambda *given, **options: pytest.fail("it has worked in vain"))
    with pytest.raises(DeltaError, match="tuned.safetensors already"):
        tools.bake("base.safetensors", "one", 1.0, "as the file", "tuned")
