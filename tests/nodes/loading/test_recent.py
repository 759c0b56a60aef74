"""Which files SaRA Loader reads again, and what it keeps of those it has read."""

import gc
import weakref

import pytest
import torch


@pytest.fixture
def names(comfy, delta):
    names = [f"recent-{number}.safetensors" for number in range(3)]
    for number, name in enumerate(names):
        ((number + 1) * delta).save(comfy.base / "models" / "sara" / name)
    return names


@pytest.fixture
def read(monkeypatch, pack, comfy):
    """Names of the files that were read, in order; no file is kept from before."""
    monkeypatch.setattr(comfy.pack_module("nodes.load")._recent, "_kept", {})
    files, original = [], pack.file_v1.read
    monkeypatch.setattr(pack.file_v1, "read", lambda path, *others: files.append(path.name) or original(path, *others))
    return files


def loaded(comfy, name: str):
    return comfy.execute("SaRALoader", sara_name=name, strength=1.0).outputs[1]


def bytes_of(delta) -> int:
    return sum(8 * len(entry.indices) for entry in delta.entries.values())


def test_going_back_to_a_file_reads_it_not_again(comfy, names, read, delta):
    for name in (*names, *reversed(names)):
        again = loaded(comfy, name)
    assert read == names
    assert all(torch.equal(again.entries[name].values, entry.values) for name, entry in delta.entries.items())


def test_what_is_kept_beside_the_one_in_use_is_bounded_and_the_oldest_goes_first(
    comfy, names, read, delta, monkeypatch
):
    monkeypatch.setattr(comfy.pack_module("nodes.host.loading.recent"), "MOST_BYTES", bytes_of(delta))
    oldest = weakref.ref(loaded(comfy, names[0]))
    for name in (names[1], names[2], names[1]):
        loaded(comfy, name)
    gc.collect()
    assert oldest() is None and read == names
    loaded(comfy, names[0])
    assert read == [*names, names[0]]


@pytest.mark.parametrize("setting", ["MOST_BYTES", "free memory"])
def test_where_there_is_no_room_only_the_one_in_use_is_kept(comfy, names, read, monkeypatch, setting):
    from comfy import model_management

    if setting == "MOST_BYTES":
        monkeypatch.setattr(comfy.pack_module("nodes.host.loading.recent"), "MOST_BYTES", 0)
    else:
        monkeypatch.setattr(model_management, "get_free_memory", lambda device: 1)
    for name in (names[0], names[0], names[1], names[0]):
        loaded(comfy, name)
    assert read == [names[0], names[1], names[0]]


def test_a_file_that_was_written_anew_is_read_and_its_old_delta_forgotten(comfy, names, read, delta):
    old = weakref.ref(loaded(comfy, names[0]))
    (7 * delta).save(comfy.base / "models" / "sara" / names[0], torch.bfloat16)
    loaded(comfy, names[0])
    gc.collect()
    assert read == [names[0], names[0]] and old() is None
