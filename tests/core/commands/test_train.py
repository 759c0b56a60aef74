"""`python -m sara_core train`: a delta of a diffusers folder and captioned images, by one process or by several."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sara_core import SaRA, SparseDelta
from sara_core.__main__ import main
from sara_core.commands.terminal import Terminal
from sara_core.data.image_folder import read_image_folder
from sara_core.diffusers_bridge import load_delta
from sara_core.pipelines.prepare import prepare_training
from sara_core.pipelines.network import DiffusersNetwork
from sara_core.pipelines.run import PipelineSettings, assembled_run
from sara_core.training import snapshot
from sara_core.training.loop import TrainingSettings
from sara_core.training.optimizer_choice import chosen_optimizer
from sara_core.training.processes import Processes, joined_processes
from sara_core.training.run import denoising_loss
from tests.support import tiny_diffusers
from tests.support import toy_runs
from tests.support.small_models import at_support, relative_error

ROOT = Path(__file__).resolve().parents[3]
ALONE = Processes(0, 1, torch.device("cpu"))
OPTIONS = ["--density", "0.05", "--learning-rate", "1e-2", "--resolution", "32"]

# What one of two processes computes with its part of each batch.
WORKER = """
import faulthandler
import sys
from pathlib import Path

import torch

from sara_core.training.processes import joined_processes
from tests.core.commands.test_train import first_gradient, whole_run

base, images, folder = map(Path, sys.argv[1:])
torch.set_num_threads(1)
faulthandler.dump_traceback_later(120, exit=True)  # a process that waits for the other for ever says where
with joined_processes() as processes:
    assert processes.count == 2 and processes.any(processes.is_first) and not processes.any(False)
    gradient, loss = first_gradient(base, images, processes)
    values, weights = whole_run(base, images, processes)
    result = {"gradient": gradient, "loss": loss, "values": values, "weights": weights}
    torch.save(result, folder / f"result-{processes.rank}.pt")
"""


def settings(**changes):
    own = {
        "selection": {"rule": "smallest", "density": 0.05}, "steps": 1, "batch_size": 4, "adjust_at": [], "seed": 3,
        "data": "", "resolution": 32, "dtype": "float32",
    }  # fmt: skip
    return PipelineSettings(**{**vars(toy_runs.settings()), **own, **changes})


def prepared(base, images):
    return prepare_training(base, read_image_folder(images).images, 32, torch.device("cpu"))


def losses(model, chosen, processes=ALONE):
    """The losses of a prepared model's batches."""
    network = DiffusersNetwork(model.model, model.family, model.noising, processes.device, torch.float32)
    return denoising_loss(chosen, network, model.samples, own_part=processes.own_part)


def assembled(model, chosen, processes=ALONE):
    """The run of a prepared model."""
    return assembled_run(model, chosen, chosen_optimizer(chosen), processes)


def first_gradient(base, images, processes=ALONE):
    """Gradient of the whole vector, and the loss, in the first step of a batch of four."""
    run = assembled(prepared(base, images), settings(), processes)
    run.training.settings = TrainingSettings(steps=1, max_grad_norm=0)  # clipping changes the gradient in place
    first, = run.training.run()
    return run.store.values.grad.clone(), first


def whole_run(base, images, processes=ALONE):
    """Δ and the live weights after a few steps of two micro-batches each, with an adjustment and the low-rank loss."""
    chosen = settings(steps=4, grad_accumulation=2, adjust_at=[0.5], low_rank_weight=1e-4)
    model = prepared(base, images)
    run = assembled(model, chosen, processes)
    run.training.run()
    assert len(run.training.adjustments) == 1
    delta = run.store.delta().entries
    weights = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    return torch.cat([entry.values for entry in delta.values()]), weights


def train(base, images, target, *options):
    return main(["train", str(base), str(images), str(target), *OPTIONS, *options])


def test_the_command_trains_a_delta_that_improves_the_model(base, images, tmp_path, capsys):
    target = tmp_path / "style.safetensors"
    assert train(base, images, target, "--steps", "40", "--batch-size", "4", "--snapshot-every", "3") == 0
    output = capsys.readouterr()
    assert output.err.startswith("4 images with a caption\n") and "step 40 of 40, loss" in output.err
    assert output.out.endswith(f"weights trained in 40 steps: {target}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]
    delta = SparseDelta.load(target)
    assert all(name.startswith("diffusion_model.") for name in delta.entries)
    assert json.loads(delta.metadata["sara.training"])["images"] == 4
    loss = mean_loss(prepared(base, images))
    assert mean_loss(prepared(base, images), delta) < 0.98 * loss


def mean_loss(model, delta=None):
    """Of a prepared model with a delta, over the same draws each time."""
    if delta is not None:
        load_delta(model.model, delta)
    with torch.no_grad():
        loss = losses(model, settings(seed=9))
        return sum(loss().item() for _ in range(8)) / 8


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_gradient_is_that_of_the_obvious_loss(images, tmp_path, prediction):
    tiny_diffusers.pipeline(tmp_path / "tokenizer", prediction).save_pretrained(tmp_path / "model")
    gradient, loss = first_gradient(tmp_path / "model", images)
    model = prepared(tmp_path / "model", images)
    support = SaRA(tiny_diffusers.unet(), density=0.05).store.support
    batch = losses(model, settings()).draws.next_batch()
    alphas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square().neg().add(1).cumprod(0)
    for sample, level, noise in batch:
        signal_rate, noise_rate = alphas[level].sqrt(), (1 - alphas[level]).sqrt()
        noisy = signal_rate * sample.latent + noise_rate * noise
        target = noise if prediction == "epsilon" else signal_rate * noise - noise_rate * sample.latent
        predicted = model.model(noisy[None], level, sample.conditions["text"][None]).sample[0]
        ((predicted - target).square().mean() / len(batch)).backward()
    dense = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    assert relative_error(gradient, at_support(dense, support)) <= 1e-5 and loss > 0


def test_ctrl_c_keeps_the_delta_and_a_snapshot_that_goes_on_bit_for_bit(base, images, tmp_path, stop_after, capsys):
    options = ["--steps", "7", "--batch-size", "3", "--adjust-at", "0.5"]
    assert train(base, images, tmp_path / "whole.safetensors", *options) == 0
    target = tmp_path / "style.safetensors"
    before = signal.getsignal(signal.SIGINT)
    terminal = stop_after(5)
    assert train(base, images, target, *options) == 1
    assert signal.getsignal(signal.SIGINT) is before
    saved, = (tmp_path / "style_snapshots").iterdir()
    assert terminal.text.endswith(
        f"error: Stopped after step 5 of 7. What was trained in 5 steps is in {target}. To go on with it: --resume "
        f"{saved}\n"
    )
    assert json.loads(SparseDelta.load(target).metadata["sara.training"])["steps"] == 5
    assert train(base, images, target, *options, "--resume", str(saved)) == 0
    assert target.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not saved.parent.exists()


@pytest.fixture
def interruptible():
    """As in a terminal; what runs in the background may have been told to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_does_not_wait_for_the_end_of_the_step(interruptible):
    terminal, before = Terminal(ALONE, ""), signal.getsignal(signal.SIGINT)
    with terminal.stops():
        assert not terminal.stop_requested()
        signal.raise_signal(signal.SIGINT)
        assert terminal.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_snapshot_of_other_settings_or_images_is_not_resumed(base, images, tmp_path, capsys):
    path = tmp_path / "run.safetensors"
    saved = settings(batch_size=1, seed=0, adjust_at=[0.5], data=read_image_folder(images).digest())
    snapshot.save(path, {"step": 1}, {**vars(saved), "grad_accumulation": 9})
    assert train(base, images, tmp_path / "out.safetensors", "--steps", "7", "--resume", str(path)) == 1
    error = capsys.readouterr().err
    assert "this one is another (grad_accumulation: 9 in the snapshot, 1 now). Give" in error
    (images / "0.txt").write_text("a green square")
    try:
        assert train(base, images, tmp_path / "out.safetensors", "--steps", "7", "--resume", str(path)) == 1
    finally:
        (images / "0.txt").write_text(tiny_diffusers.CAPTIONS[0])
    assert "data:" in capsys.readouterr().err


def test_a_snapshot_with_moments_of_another_length_is_refused(base, images, tmp_path, stop_after):
    target, options = tmp_path / "style.safetensors", ["--steps", "3"]
    terminal = stop_after(2)
    assert train(base, images, target, *options) == 1
    path, = (tmp_path / "style_snapshots").iterdir()
    state, saved = snapshot.load(path)
    moments = state["optimizer"]["state"][0]
    moments["exp_avg"] = moments["exp_avg"][:5]
    snapshot.save(path, state, saved)
    assert train(base, images, target, *options, "--resume", str(path)) == 1
    assert "damaged: the optimizer's exp_avg is float32 [5] instead of float32 [" in terminal.text


def test_what_is_there_is_replaced_by_a_finished_delta_only(base, images, tmp_path, stop_after):
    target = tmp_path / "style.safetensors"
    assert train(base, images, target, "--steps", "3") == 0
    finished = target.read_bytes()
    terminal, stopped = stop_after(1), []
    for name in ("style_stopped", "style_stopped_2"):
        stopped.append(tmp_path / f"{name}.safetensors")
        assert train(base, images, target, "--steps", "9") == 1
        assert f"What was trained in 1 steps is in {stopped[-1]}. To go on" in terminal.text
        assert target.read_bytes() == finished
        assert json.loads(SparseDelta.load(stopped[-1]).metadata["sara.training"])["steps"] == 1
    before = [path.read_bytes() for path in stopped]
    stop_after(None)
    assert train(base, images, target, "--steps", "4") == 0
    assert target.read_bytes() != finished and [path.read_bytes() for path in stopped] == before


def test_a_run_whose_delta_could_not_be_saved_is_not_lost(base, images, tmp_path, capsys, monkeypatch):
    target = tmp_path / "a.safetensors"

    def prepare_and_make_a_folder(*arguments):
        target.mkdir()
        return prepare_training(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("sara_core.commands.train.prepare_training", prepare_and_make_a_folder)
        assert train(base, images, target, "--steps", "2") == 1
    before_the_last_step, saved = sorted((tmp_path / "a_snapshots").iterdir())
    assert before_the_last_step.name == "a_step0000001.safetensors"
    error = capsys.readouterr().err
    kept = tmp_path / "a_stopped.safetensors"
    assert "it is the name of a folder. Choose another name" in error
    assert error.endswith(f"What was trained in 2 steps is in {kept}. To go on with it: --resume {saved}\n")
    assert SparseDelta.load(kept).nnz > 0
    assert train(base, images, tmp_path / "b.safetensors", "--steps", "2", "--resume", str(saved)) == 0
    assert SparseDelta.load(tmp_path / "b.safetensors").nnz > 0


def test_snapshots_are_written_on_the_way(base, images, tmp_path, stop_after):
    stop_after(5)
    assert train(base, images, tmp_path / "a.safetensors", "--steps", "9", "--snapshot-every", "2") == 1
    names = sorted(path.name for path in (tmp_path / "a_snapshots").iterdir())
    assert names == ["a_step0000004.safetensors", "a_step0000005.safetensors"]


def test_what_matches_and_what_is_missing_is_said_before_training(base, tmp_path, capsys):
    images = tiny_diffusers.image_folder(tmp_path / "images")
    (images / "3.txt").rename(images / "other.txt")
    (images / "notes.md").write_text("no caption")
    assert train(base, images, tmp_path / "out.safetensors", "--steps", "1") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3 images with a caption"
    assert lines[1] == "1 image left out, for want of a .txt file of the same name: 3.png"
    assert lines[2] == "1 caption without an image: other.txt"


def test_options_reach_the_run(base, images, tmp_path):
    target = tmp_path / "out.safetensors"
    options = ["--gradient-checkpointing", "--dtype", "bfloat16", "--low-rank", "1e-4", "--accumulation", "2"]
    arguments = ["train", base, images, target, "--count", "500", "--resolution", "16", "--steps", "2", *options]
    assert main(list(map(str, arguments))) == 0
    delta = SparseDelta.load(target)
    assert delta.nnz == 500
    trained = json.loads(delta.metadata["sara.training"])
    assert (trained["dtype"], trained["grad_accumulation"], trained["low_rank_weight"]) == ("bfloat16", 2, 1e-4)
    assert trained["learning_rate"] == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("what", ["a folder", "a long name", "not allowed"])
def test_where_no_delta_can_be_written_is_said_before_the_model_is_loaded(
    base, images, tmp_path, capsys, monkeypatch, what
):
    target, message = tmp_path / "a.safetensors", "writing there is not allowed"
    if what == "a folder":
        target, message = tmp_path / "folder.safetensors", "it is the name of a folder. Choose another name"
        target.mkdir()
    elif what == "a long name":
        target, message = tmp_path / f"{'a' * 300}.safetensors", "is too long: with what is added to it"
    else:
        monkeypatch.setattr("sara_core.files.atomic.open", not_allowed, raising=False)
    monkeypatch.setattr("sara_core.commands.train.prepare_training", lambda *_: pytest.fail("it was begun"))
    before = list(tmp_path.iterdir())
    assert train(base, images, target, "--steps", "1") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert list(tmp_path.iterdir()) == before


def not_allowed(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_too_little_memory_is_said_with_the_options_that_help(base, images, tmp_path, capsys, monkeypatch):
    def prepare_training(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("sara_core.commands.train.prepare_training", prepare_training)
    assert train(base, images, tmp_path / "out.safetensors", "--dtype", "bfloat16") == 1
    error = capsys.readouterr().err
    assert "not enough memory" in error and "--gradient-checkpointing, --stream (on a GPU)" in error
    assert "--dtype" not in error


REFUSED = {
    "no folder of images": (["{base}", "{tmp}/none", "{tmp}/o.safetensors"], "There is no folder"),
    "no image": (["{base}", "{base}", "{tmp}/o.safetensors"], "put the training images there"),
    "a single file": (["{images}/0.png", "{images}", "{tmp}/o.safetensors"], "is no diffusers folder"),
    "another pipeline": (["{tmp}/fill", "{images}", "{tmp}/o.safetensors"], "is a FluxFillPipeline: this command"),
    "a damaged pipeline": (["{tmp}/damaged", "{images}", "{tmp}/o.safetensors"], "cannot be opened"),
    "another ending": (["{base}", "{images}", "{tmp}/o.pt"], "must be a .safetensors file"),
    "a folder that is not there": (["{base}", "{images}", "{tmp}/no/o.safetensors"], "in a folder that exists"),
    "an odd resolution": (["{base}", "{images}", "{tmp}/o.safetensors", "--resolution", "33"], "a multiple of 2"),
    "too much": (["{base}", "{images}", "{tmp}/o.safetensors", "--resolution", "32", "--threshold", "9"], "full fine"),
    "a damaged image": (["{base}", "{tmp}/bad", "{tmp}/o.safetensors"], "'x.png' is damaged or no image"),
    "two images for one caption": (["{base}", "{tmp}/two", "{tmp}/o.safetensors"], "could belong to 'x.jpg' or to"),
    "a caption that is no text": (["{base}", "{tmp}/binary", "{tmp}/o.safetensors"], "'x.txt' is not UTF-8 text"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_in_words(base, images, tmp_path, capsys, what):
    for name, kind in {"fill": "FluxFillPipeline", "damaged": "StableDiffusionPipeline"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    folders = {"bad": {"x.png": b"no"}, "two": {"x.png": b"", "x.jpg": b""}, "binary": {"x.png": b"", "x.txt": b"\xff"}}
    for name, files in folders.items():
        (tmp_path / name).mkdir()
        for file, content in {"x.txt": b"a caption", **files}.items():
            (tmp_path / name / file).write_bytes(content)
    arguments, message = REFUSED[what]
    places = {"base": base, "images": images, "tmp": tmp_path}
    assert main(["train", *(argument.format(**places) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert "error: " in error and message in error and "Traceback" not in error
    assert not list(tmp_path.glob("o.*"))


def torchrun(*arguments) -> str:
    """Run a script, or -m and a module, in two processes; returns what they wrote to standard error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, timeout=300, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_two_processes_give_the_gradients_of_one_with_the_double_batch(base, images, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(tmp_path / "worker.py", base, images, tmp_path)
    first, second = (torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in range(2))
    for name, result in first.items():
        if isinstance(result, dict):
            assert all(torch.equal(result[key], second[name][key]) for key in result)
        else:
            assert torch.equal(torch.as_tensor(result), torch.as_tensor(second[name])), name
    gradient, loss = first_gradient(base, images)
    assert relative_error(first["gradient"], gradient) <= 1e-5
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    values, _ = whole_run(base, images)
    assert relative_error(first["values"], values) <= 1e-2  # Adam makes much of the smallest gradients


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
def test_of_two_processes_the_first_talks_and_writes(base, images, tmp_path):
    target = tmp_path / "both.safetensors"
    said = torchrun("-m", "sara_core", "train", base, images, target, *OPTIONS, "--steps", "3")
    assert said.count("4 images with a caption") == 1 and said.count("step 3 of 3") == 1
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert json.loads(SparseDelta.load(target).metadata["sara.training"])["batch_size"] == 2


def test_a_process_that_was_started_by_itself_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_processes() as processes:
        assert (processes.rank, processes.count) == (0, 1) and processes.any(True) and not processes.any(False)
