"""A format that somebody adds from outside is recognised, read, written, offered and described like ours; and what the
records of ours say is what they do."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.__main__ import main
from sara_core.commands.remedies import load_delta
from sara_core.conversion.formats import Reader, Sign, Writer
from sara_core.conversion.foreign_file import opened_foreign
from sara_core.conversion.read import read_delta
from sara_core.conversion.registry import READERS, WRITERS, recognised
from sara_core.conversion.remedies import CONVERT
from sara_core.conversion.write import write_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.entry import dense
from sara_core.errors import DeltaError

NAME, SHAPE = "diffusion_model.a.weight", (4, 5)


class ToyReader(Reader):
    """One dense change for each weight, and the weight's name in full."""

    called = "a toy"
    names = ("Toy",)
    signs = (Sign("a toy", CONVERT, (".toy",)),)
    needs_base = False
    files_in_folder = ("toy.safetensors",)

    def read(self, file, request):
        entries = {}
        for name in file.names:
            change = file.source.tensor(name)
            places = change.reshape(-1).nonzero().view(-1)
            entries[name.removesuffix(".toy")] = SparseEntry(
                places.to(torch.int32), change.reshape(-1)[places], tuple(change.shape)
            )
        return request.made(entries)


class ToyWriter(Writer):
    summary = "dense, for children"
    ending = ".toy"

    def write(self, delta, path, request):
        save_file({name + ".toy": dense(entry) for name, entry in delta.entries.items()}, path)
        return f"Played with {len(delta.entries)} weights."


class LetterReader(Reader):
    """No safetensors file at all: one letter for each element."""

    called = "a letter"
    needs_base = False

    def recognises(self, file):
        return file.path.is_file() and file.path.read_bytes().startswith(b"letter ")

    def read(self, file, request):
        change = torch.tensor([letter - ord("a") for letter in file.path.read_bytes()[7:]], dtype=torch.float32)
        places = change.nonzero().view(-1)
        return request.made({NAME: SparseEntry(places.to(torch.int32), change[places], (len(change),))})


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(READERS, "toy", ToyReader())
    monkeypatch.setitem(READERS, "letter", LetterReader())
    monkeypatch.setitem(WRITERS, "toy", ToyWriter())


@pytest.fixture
def change():
    change = torch.zeros(SHAPE)
    change[1, 2], change[3, 4] = 0.5, -2.0
    return change


@pytest.fixture
def toy_file(tmp_path, change):
    path = tmp_path / "toy.safetensors"
    save_file({NAME + ".toy": change}, path)
    return path


def test_the_library_reads_a_format_from_outside(toys, toy_file, change):
    for path in (toy_file, toy_file.parent):
        conversion = read_delta(path)
        assert torch.equal(dense(conversion.delta.entries[NAME]), change)
        assert conversion.text() == "A toy: 2 changes in 1 weights."
        assert '"from": "a toy"' in conversion.delta.metadata["sara.converted"]


def test_a_format_from_outside_is_asked_before_ours(toys, tmp_path):
    """Its names may be such as ours have too."""
    path = tmp_path / "x.safetensors"
    save_file({"a.weight.toy": torch.ones(2), "a.weight": torch.ones(2), "a.lora_up.weight": torch.ones(2)}, path)
    with opened_foreign(path) as file:
        assert recognised(file) is READERS["toy"]


def test_a_format_may_be_any_bytes(toys, tmp_path):
    (tmp_path / "x.txt").write_bytes(b"letter abca")
    assert dense(read_delta(tmp_path / "x.txt").delta.entries[NAME]).tolist() == [0, 1, 2, 0]
    (tmp_path / "y.txt").write_bytes(b"anything else")
    with pytest.raises(DeltaError, match="not a complete .safetensors file"):
        read_delta(tmp_path / "y.txt")


def test_the_command_line_reads_and_writes_a_format_from_outside(toys, toy_file, change, tmp_path, capsys):
    delta, back = tmp_path / "delta.safetensors", tmp_path / "back.toy"
    assert main(["convert", str(toy_file), str(delta)]) == 0
    assert torch.equal(dense(SparseDelta.load(delta).entries[NAME]), change)
    assert main(["convert", str(delta), str(back), "--to", "toy"]) == 0
    assert "Played with 1 weights." in capsys.readouterr().out
    assert torch.equal(load_file(back)[NAME + ".toy"], change)


def test_the_command_line_offers_a_format_from_outside(toys, capsys):
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "{sara,diff,lora,shira,toy}" in said and "toy: dense, for children" in said and "Toy" in said


def test_errors_name_a_format_from_outside(toys, toy_file, tmp_path, capsys):
    with pytest.raises(DeltaError, match="It looks like a toy. Make a delta of it first: python -m sara_core convert"):
        load_delta(toy_file)
    save_file({"latent": torch.zeros(2)}, tmp_path / "latent.safetensors")
    with pytest.raises(DeltaError, match=r"neither a delta or adapter \(Toy, SaRA, .*\) nor a model"):
        read_delta(tmp_path / "latent.safetensors")
    with pytest.raises(DeltaError, match="'toy.safetensors' is sparse already and loses nothing"):
        read_delta(toy_file, density=0.5)
    entry = SparseEntry(torch.tensor([0], dtype=torch.int32), torch.ones(1), SHAPE)
    with pytest.raises(DeltaError, match="'x.bin': the file's name must end in .toy"):
        write_delta(SparseDelta({NAME: entry}), tmp_path / "x.bin", "toy")
    with pytest.raises(DeltaError, match="no format 'games'. Choose one of sara, diff, lora, shira, toy"):
        write_delta(SparseDelta({NAME: entry}), tmp_path / "x.bin", "games")


def test_without_it_nothing_of_a_toy_is_known(toy_file):
    with pytest.raises(DeltaError, match="nothing that can be converted"):
        read_delta(toy_file)


def test_the_node_offers_and_writes_a_format_from_outside(comfy, monkeypatch, change):
    """In the pack as the host has it, whose modules are others than those that tests import."""
    classes, registry = comfy.pack_module("sara_core.delta"), comfy.pack_module("sara_core.conversion.registry")
    monkeypatch.setitem(registry.WRITERS, "toy", ToyWriter())
    monkeypatch.setitem(registry.READERS, "toy", ToyReader())
    node = comfy.node_class("SaRAConvert")
    assert "toy" in node.INPUT_TYPES()["required"]["to"][1]["options"] and "Toy" in node.define_schema().description
    places = change.reshape(-1).nonzero().view(-1)
    entry = classes.SparseEntry(places.to(torch.int32), change.reshape(-1)[places], SHAPE)
    report = comfy.execute(
        "SaRAConvert", file_name="none", base_name="none", to="toy", delta=classes.SparseDelta({NAME: entry})
    ).outputs[1]
    saved = report.splitlines()[-1].removeprefix("Saved as ")
    assert "Played with 1 weights." in report and saved.endswith(".toy")
    assert torch.equal(load_file(comfy.base / saved)[NAME + ".toy"], change)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Reader → a file of its format, and their base: what the fuzzer starts from."""
    from benchmarks.fuzz_.untrusted import targets

    folder, found = tmp_path_factory.mktemp("seeds"), {}
    for target in targets(folder):
        for number, seed in enumerate(target.seeds):
            path = folder / f"{target.name} {number}{target.ending}"
            path.write_bytes(seed)
            with contextlib.suppress(DeltaError), opened_foreign(path) as file:
                if (reader := recognised(file)) is not None:
                    found.setdefault(reader, path)
    return SimpleNamespace(of=found, base=folder / "base.safetensors")


def test_every_reader_has_files_that_the_fuzzer_starts_from(seeds):
    assert seeds.of.keys() == set(READERS.values())


def test_what_is_complete_in_itself_needs_no_base_and_what_is_sparse_no_density():
    assert {name for name, reader in READERS.items() if not reader.needs_base} == {"sara", "lt-sft"}
    assert {name for name, reader in READERS.items() if reader.takes_density} == {
        "model", "adapter", "lt-sft with whole weights", "super-tuning with a lora",
    }  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_reader_needs_what_its_record_says(seeds, name):
    reader = READERS[name]
    path, density = seeds.of[reader], 0.5 if reader.takes_density else None
    changes = read_delta(path, seeds.base, density).delta.nnz
    assert changes
    if reader.takes_density:
        assert read_delta(path, seeds.base, 0.01).delta.nnz < changes
    if reader.needs_base:
        with pytest.raises(DeltaError, match=f"^{reader.title} .*can only be converted beside the base.* as base\\."):
            read_delta(path, density=density)
    else:
        assert read_delta(path).delta.nnz
    if not reader.takes_density:
        with pytest.raises(DeltaError, match="leave the density out"):
            read_delta(path, seeds.base, 0.5)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_writes_what_its_record_says(tmp_path, name):
    entry = SparseEntry(torch.tensor([3, 7], dtype=torch.int32), torch.tensor([1.0, -2.0]), SHAPE)
    path = tmp_path / ("x" + WRITERS[name].ending)
    write_delta(SparseDelta({NAME: entry}), path, name)
    assert path.is_file() if WRITERS[name].ending else path.is_dir()
    assert list(tmp_path.iterdir()) == [path]
