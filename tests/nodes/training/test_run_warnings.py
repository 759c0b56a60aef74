"""What goes wrong beside a training is said, once on the node, and does not end it; Cancel keeps all that it can."""

import errno
import os

import pytest
import torch

from tests.nodes.training.test_session import assert_same_delta, cancelled
from tests.support.toy_training import train

OPTIONS = {"steps": 4, "density": 2.0, "include": "time_embed", "snapshot_every": 0, "keep_last_snapshot": False}


@pytest.fixture
def shown(comfy, monkeypatch):
    """All texts that the nodes show, in their order."""
    texts = []
    monkeypatch.setattr(comfy.pack_module("nodes.train"), "show_text", lambda node, text: texts.append(text))
    return texts


class Vae:
    latent_channels = 4

    def decode(self, latent):
        return torch.zeros(1, 8, 8, 3)


@pytest.fixture
def samples(comfy, data, monkeypatch):
    """Pictures after steps 2 and 4, without any sampling."""
    samples = comfy.pack_module("nodes.host.training.samples")
    monkeypatch.setattr(samples.comfy.sample, "sample", lambda *_, **__: torch.zeros(1))
    return comfy.execute("SaRATrainSamples", positive=data[1][:2], vae=Vae(), every=2, steps=1).outputs[0]


@pytest.fixture(scope="module")
def straight(comfy, model, data):
    return train(comfy, model, data, **OPTIONS)


def warnings_at_the_end(shown):
    """Lines of the node's last text after the report."""
    return shown[-1].splitlines()[1:]


def assert_said_once(shown, caplog, warning):
    line, = warnings_at_the_end(shown)
    assert warning in line and warning in caplog.text
    assert all(text.count(warning) <= 1 for text in shown)


def test_pictures_are_whole_or_not_there(comfy, model, data, untouched, output, samples, shown, caplog, straight):
    train(comfy, model, data, **OPTIONS, samples=samples)
    names = [f"step_{step:07}_{number:02}.png" for step in (0, 2, 4) for number in (1, 2)]
    assert sorted(path.name for path in (output / "sara_samples" / "run_00001").iterdir()) == names
    assert warnings_at_the_end(shown) == []


@pytest.mark.parametrize("obstacle, said", [
    ("a file in the folder's place", "is not a folder"), ("a full disk", "the disk is full"),
])  # fmt: skip
def test_pictures_that_cannot_be_kept(
    comfy, model, data, untouched, output, samples, shown, caplog, straight, monkeypatch, obstacle, said
):
    if obstacle == "a full disk":
        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(comfy.pack_module("sara_core.files.atomic").os, "fsync", full)
    else:
        (output / "sara_samples").write_bytes(b"mine")
    delta, loss = train(comfy, model, data, **OPTIONS, samples=samples)
    assert_same_delta(straight[0], delta)
    assert loss == straight[1]
    assert "The pictures of step 4 are shown, but not kept" in caplog.text and said in caplog.text
    assert sum(line.startswith("The pictures") for line in warnings_at_the_end(shown)) == 1
    assert not list(output.rglob("*.png")) and not list(output.rglob("*.tmp"))


@pytest.mark.parametrize("error, said", [
    (torch.OutOfMemoryError("CUDA out of memory."), "Memory ran out."), (ValueError("planted"), "ValueError: planted"),
])  # fmt: skip
def test_pictures_that_cannot_be_drawn(
    comfy, model, data, untouched, output, samples, shown, caplog, straight, monkeypatch, error, said
):
    from comfy import model_management

    def fail(*_):
        with torch.inference_mode():
            model_management.unload_all_models()  # as a VAE that needs the room would
        raise error

    monkeypatch.setattr(Vae, "decode", fail)
    delta, loss = train(comfy, model, data, **OPTIONS, samples=samples)
    assert_same_delta(straight[0], delta)
    assert loss == straight[1]
    assert_said_once(shown, caplog, f"Training goes on without the pictures of step 4. {said}")


def test_cancel_while_a_picture_is_drawn_is_cancel(comfy, model, data, untouched, output, samples, monkeypatch):
    from comfy import model_management

    class Cancelled(Exception):
        """As older hosts have it: an Exception."""

    decode, calls = Vae.decode, iter(range(1, 100))

    def fail_after_the_first_two(*inputs):  # those of before the first step
        if next(calls) > 2:
            raise Cancelled
        return decode(*inputs)

    monkeypatch.setattr(model_management, "InterruptProcessingException", Cancelled)
    monkeypatch.setattr(Vae, "decode", fail_after_the_first_two)
    with pytest.raises(Cancelled):
        train(comfy, model, data, **OPTIONS, samples=samples)
    assert (output / "sara" / "stopped_run_00001.safetensors").is_file()
    assert (output / "sara_snapshots" / "run_00001_step0000002.safetensors").is_file()


def test_a_state_that_no_file_can_hold_ends_neither_the_run_nor_cancel(
    comfy, model, data, untouched, output, shown, caplog, straight, monkeypatch
):
    """As an optimizer of another package may have."""
    def fail(*_):
        raise RuntimeError("no view of it as bytes")

    monkeypatch.setattr(comfy.pack_module("sara_core.training.snapshot"), "save", fail)
    delta, _ = train(comfy, model, data, **{**OPTIONS, "snapshot_every": 1})
    assert_same_delta(straight[0], delta)
    said = "RuntimeError: no view of it as bytes"
    assert_said_once(shown, caplog, f"Training goes on without a snapshot of step 3. {said}")
    cancelled(comfy, model, data, 3, **OPTIONS)
    assert (output / "sara" / "stopped_run_00002.safetensors").is_file()
    assert f"There is no snapshot of it. {said}" in caplog.text


def test_cancel_without_a_folder_for_deltas_leaves_the_snapshot(
    comfy, model, data, untouched, output, caplog, straight
):
    (output / "sara").rmdir()
    (output / "sara").write_bytes(b"mine")
    cancelled(comfy, model, data, 3, **OPTIONS)
    snapshot = "run_00001_step0000002.safetensors"
    said = caplog.text
    assert "in 2 steps could not be saved as a delta. The folder output/sara cannot be made" in said
    assert "To go on with it, choose 'run 1, step 2' under resume." in said and "prefix" not in said
    (output / "sara").unlink()
    assert_same_delta(straight[0], train(comfy, model, data, **OPTIONS, resume=snapshot)[0])


def test_cancel_without_a_folder_for_snapshots_leaves_the_delta(comfy, model, data, untouched, output, caplog):
    (output / "sara_snapshots").write_bytes(b"mine")
    cancelled(comfy, model, data, 3, **OPTIONS)
    assert (output / "sara" / "stopped_run_00001.safetensors").is_file()
    assert "is in output/sara/stopped_run_00001.safetensors. There is no snapshot of it." in caplog.text
