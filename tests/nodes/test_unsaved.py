"""What is kept of a finished training until it is saved; and what two servers on one output folder do to each other."""

import os
import re
import weakref

import pytest
import torch

from tests.nodes.training.test_session import cancelled
from tests.support.toy_training import train

OPTIONS = {"steps": 4, "density": 2.0, "include": "time_embed", "snapshot_every": 2, "keep_last_snapshot": False}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def same_values(first, second):
    return all(torch.equal(entry.values, second.entries[name].values) for name, entry in first.entries.items())


def test_a_finished_delta_is_on_the_disk_until_it_is_saved(comfy, model, data, untouched, output):
    delta, _ = train(comfy, model, data, **OPTIONS)
    assert files(output) == ["sara/unsaved/run_00001.safetensors"]
    loaded = comfy.pack_module("sara_core").SparseDelta.load(output / "sara" / "unsaved" / "run_00001.safetensors")
    assert same_values(delta, loaded) and loaded.metadata == {**delta.metadata, "sara.version": "1"}
    comfy.execute("SaRASave", delta=delta * 0.5, filename_prefix="sara/half")
    assert files(output) == ["sara/half_00001_.safetensors", "sara/unsaved/run_00001.safetensors"]
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/mine")
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/mine")
    assert files(output) == [
        "sara/half_00001_.safetensors", "sara/mine_00001_.safetensors", "sara/mine_00002_.safetensors",
    ]  # fmt: skip


def test_a_merge_calls_an_unsaved_delta_by_its_run(comfy, model, data, untouched, output):
    delta, _ = train(comfy, model, data, **OPTIONS)
    said = comfy.execute("SaRAMerge", **{"deltas.delta_1": delta, "deltas.delta_2": delta * 0.5}).outputs[1]
    assert "unsaved delta of run_00001 (delta_1) at" in said and re.search(r"(?<!\()delta_2 at", said)


def test_saving_as_a_sara_file_with_sara_convert_is_saving(comfy, model, data, untouched, output):
    delta, _ = train(comfy, model, data, **OPTIONS)
    comfy.execute("SaRAConvert", delta=delta, to="diff", filename_prefix="sara/dense")
    assert "sara/unsaved/run_00001.safetensors" in files(output)
    comfy.execute("SaRAConvert", delta=delta, to="sara", filename_prefix="sara/whole")
    assert files(output) == ["sara/dense_00001_.safetensors", "sara/whole_00001_.safetensors"]


def test_a_later_run_removes_the_copy_that_nothing_can_save_any_more(comfy, model, data, untouched, output):
    first, _ = train(comfy, model, data, **OPTIONS)
    theirs = output / "sara" / "unsaved" / "run_00002.safetensors"  # of another process
    theirs.write_bytes(b"theirs")
    second, _ = train(comfy, model, data, **OPTIONS, seed=1)  # as with two trainings in one workflow
    assert len(files(output)) == 3
    gone = weakref.ref(first)
    del first
    assert gone() is None and len(files(output)) == 3
    train(comfy, model, data, **OPTIONS, seed=2)
    assert files(output) == [f"sara/unsaved/run_0000{number}.safetensors" for number in (2, 3, 4)]
    assert theirs.read_bytes() == b"theirs" and second.nnz


def test_a_copy_that_somebody_has_changed_is_left_alone(comfy, model, data, untouched, output):
    delta, _ = train(comfy, model, data, **OPTIONS)
    copy = output / "sara" / "unsaved" / "run_00001.safetensors"
    copy.write_bytes(b"mine")
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/mine")
    assert copy.read_bytes() == b"mine"


def test_a_copy_that_cannot_be_written_lets_the_snapshots_stay(comfy, model, data, untouched, output, caplog):
    (output / "sara" / "unsaved").write_bytes(b"in the way")
    delta, _ = train(comfy, model, data, **OPTIONS)
    snapshot = "run_00001_step0000004.safetensors"
    assert f"sara_snapshots/{snapshot}" in files(output)
    said = "not be kept on the disk: save it now.*'run 1, step 4' under resume.*output/sara/unsaved cannot be made"
    assert re.search(said, caplog.text)
    again, loss = train(comfy, model, data, **OPTIONS, resume=snapshot)
    assert same_values(delta, again) and len(loss["loss"]) == 4
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/mine")
    assert f"sara_snapshots/{snapshot}" in files(output)  # which is what is left of the second run
    comfy.execute("SaRASave", delta=again, filename_prefix="sara/mine")
    assert files(output) == ["sara/mine_00001_.safetensors", "sara/mine_00002_.safetensors", "sara/unsaved"]


def test_a_snapshot_under_a_name_of_its_own_is_resumed_and_stays(comfy, model, data, untouched, output):
    cancelled(comfy, model, data, 3, **OPTIONS)
    saved = output / "sara_snapshots" / "run_00001_step0000002.safetensors"
    mine = saved.with_name("run_00001_step0000002 before the cat pictures.safetensors")
    saved.rename(mine)
    before = mine.read_bytes()
    train(comfy, model, data, **OPTIONS, resume=mine.name)
    assert mine.read_bytes() == before
    assert [name for name in files(output) if name.startswith("sara_snapshots")] == [f"sara_snapshots/{mine.name}"]


def test_a_run_that_lives_elsewhere_keeps_its_name_and_its_snapshots(comfy, model, data, untouched, output):
    cancelled(comfy, model, data, 3, **OPTIONS)
    saved = output / "sara_snapshots" / "run_00001_step0000002.safetensors"
    with comfy.pack_module("nodes.host.folders").reserved_run(saved) as name:  # as another server holds it
        train(comfy, model, data, **OPTIONS, resume=saved.name)
        assert name == "run_00001" and saved.is_file()
        assert "sara/unsaved/run_00002.safetensors" in files(output)
    train(comfy, model, data, **OPTIONS, resume=saved.name)
    assert not saved.exists() and "sara/unsaved/run_00001.safetensors" in files(output)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sixty_saves_of_two_servers_are_sixty_files(comfy, model, data, untouched, output):
    delta, _ = train(comfy, model, data, **OPTIONS)
    children = []
    for server in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                torch.set_num_threads(1)  # the pool of more threads does not survive a fork
                scaled = delta * (1.0 + server)
                for _ in range(30):
                    comfy.execute("SaRASave", delta=scaled, filename_prefix="sara/both", title=f"server {server}")
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    saved = sorted((output / "sara").glob("both_*"))
    assert [path.name for path in saved] == [f"both_{number:05}_.safetensors" for number in range(1, 61)]
    load = comfy.pack_module("sara_core").SparseDelta.load
    titles = [load(path).metadata["modelspec.title"] for path in saved]
    assert titles.count("server 0") == titles.count("server 1") == 30


def test_a_file_that_appears_during_a_bake_survives(comfy, checkpoint, model, data, untouched, output, monkeypatch):
    from comfy import model_management

    delta, _ = train(comfy, model, data, **OPTIONS)
    monkeypatch.setattr(comfy.folder_paths, "get_full_path", lambda *_: str(checkpoint))
    monkeypatch.setattr(comfy.folder_paths, "get_filename_list", lambda _: [checkpoint.name])
    appearing = output / "checkpoints" / "baked_00001_.safetensors"
    monkeypatch.setattr(
        model_management, "throw_exception_if_processing_interrupted",
        lambda: appearing.parent.is_dir() and appearing.write_bytes(b"mine"),
    )  # fmt: skip
    saved, = comfy.execute("SaRABake", ckpt_name=checkpoint.name, delta=delta).outputs
    assert saved == "checkpoints/baked_00002_.safetensors"
    assert appearing.read_bytes() == b"mine" and (output / saved).stat().st_size > checkpoint.stat().st_size / 2


def test_converted_folders_do_not_take_anothers_place(comfy, model, data, untouched, output, monkeypatch):
    delta, _ = train(comfy, model, data, **OPTIONS)
    monkeypatch.setattr(
        comfy.folder_paths, "get_save_image_path", lambda prefix, _: (str(output / "sara"), "made", 1, "sara", prefix)
    )
    mine = output / "sara" / "made_00001_"
    mine.mkdir()
    comfy.execute("SaRAConvert", delta=delta, to="shira")
    assert list(mine.iterdir()) == [] and len(list((output / "sara" / "made_00002_").iterdir())) == 2


def test_of_stopped_runs_the_last_few_stay_and_nobodys_file_goes(comfy, model, data, untouched, output, monkeypatch):
    unsaved = comfy.pack_module("nodes.host.unsaved")
    monkeypatch.setattr(unsaved, "MOST_STOPPED", 2)
    monkeypatch.setattr(unsaved, "_stopped", {})
    options = {**OPTIONS, "steps": 8}

    def stop():
        cancelled(comfy, model, data, 2, **options)

    for _ in range(3):
        stop()
    kept = {f"sara/stopped_run_0000{number}.safetensors" for number in (2, 3)}
    assert {name for name in files(output) if "stopped" in name} == kept
    assert {name[:24] for name in files(output) if "snapshots" in name} == {
        "sara_snapshots/run_00002", "sara_snapshots/run_00003",
    }  # fmt: skip

    # Of the next one to go: one that somebody has replaced, and one under a name of their own.
    changed = output / "sara" / "stopped_run_00002.safetensors"
    os.utime(changed, ns=(1, 1))
    snapshot = next((output / "sara_snapshots").glob("run_00002*"))
    mine = snapshot.rename(snapshot.with_name("mine.safetensors"))
    theirs = output / "sara" / "stopped_run_00001.safetensors"
    theirs.write_bytes(b"theirs")
    stop()
    assert changed.exists() and mine.exists() and theirs.read_bytes() == b"theirs"
    assert not [name for name in files(output) if "snapshots/run_00002" in name]
    stop()
    assert "sara/stopped_run_00003.safetensors" not in files(output)
