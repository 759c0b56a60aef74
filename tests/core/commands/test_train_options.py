"""The options of `python -m sara_core train`: each reaches the run, exactly; bad values and the help are in words."""

import copy
import re

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta
from sara_core.__main__ import main
from sara_core.commands.terminal import option
from sara_core.data.image_folder import read_image_folder
from sara_core.pipelines.prepare import prepare_training
from sara_core.selection.rules import RULES, Rule
from sara_core.training.settings import SETTINGS
from tests.core.commands.test_train import assembled, settings
from tests.support import tiny_diffusers

COURSE = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2, "adjust_at": [0.5], "seed": 3, "resolution": 32}
USUAL = ["--density", "0.05", "--steps", "3", "--batch-size", "2", "--learning-rate", "1e-2", "--resolution", "32",
         "--seed", "3"]  # fmt: skip


def rule(**more):
    return {"selection": {"rule": "smallest", "density": 0.05, **more}}


# Options → what is different about the run's settings.
OPTIONS = {
    "--steps 5": {"steps": 5},
    "--batch-size 3": {"batch_size": 3},
    "--grad-accumulation 2": {"grad_accumulation": 2},
    "--accumulation 2": {"grad_accumulation": 2},
    "--learning-rate 0": {"learning_rate": 0.0},
    "--seed 4": {"seed": 4},
    "--schedule cosine": {"schedule": "cosine"},
    "--warmup-steps 3": {"warmup_steps": 3},
    "--optimizer SGD": {"optimizer": "SGD"},
    "--optimizer Adafactor": {"optimizer": "Adafactor"},
    "--weight-decay 5": {"weight_decay": 5.0},
    "--max-grad-norm 0.001": {"max_grad_norm": 0.001},
    "--adjust-at 0.3,0.7": {"adjust_at": [0.3, 0.7]},
    "--adjust-at=": {"adjust_at": []},
    "--adjust-at 0": {"adjust_at": []},
    "--low-rank-weight 0.1": {"low_rank_weight": 0.1},
    "--low-rank 0.1": {"low_rank_weight": 0.1},
    "--noise-levels logit-normal": {"noise_levels": "logit-normal"},
    "--noise-levels logit-normal --noise-level-mean -1": {"noise_levels": "logit-normal", "noise_level_mean": -1.0},
    "--noise-levels logit-normal --noise-level-std 0.2": {"noise_levels": "logit-normal", "noise_level_std": 0.2},
    "--noise-range Wan_2.2_T2V_low_noise": {"noise_to": 0.875},
    "--noise-range Wan_2.2_I2V_high_noise --noise-to 5": {"noise_from": 0.9, "noise_to": 5.0},
    "--noise-from 0.5": {"noise_from": 0.5},
    "--min-snr-gamma 0.01": {"min_snr_gamma": 0.01},
    "--selection-rule largest": rule(rule="largest"),
    "--selection-rule random": rule(rule="random", seed=3),
    "--selection-rule gradient": rule(rule="gradient"),
    "--per-layer": rule(per_layer=True),
    "--layers attention_only": {"layers": "attention only"},
    "--include attn2,norm": {"include": ("attn2", "norm")},
    "--exclude attn2": {"exclude": ("attn2",)},
}


@pytest.fixture(scope="module")
def model(base, images):
    """Prepared once; whoever trains it takes a copy."""
    return prepare_training(base, read_image_folder(images).images, 32, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained_by_the_library(model):
    """The delta of a run with these settings, of a model that was prepared for it or of a copy of the usual one."""

    def train(prepared=None, **changes):
        run = assembled(prepared or copy.deepcopy(model), settings(**{**COURSE, **changes}))
        run.training.run()
        return run.delta()

    return train


@pytest.fixture(scope="module")
def usual(trained_by_the_library):
    return trained_by_the_library()


@pytest.fixture
def command(base, images, tmp_path):
    """Train with these options; returns the delta."""

    def train(*options):
        target = tmp_path / "out.safetensors"
        assert main(["train", str(base), str(images), str(target), *USUAL, *options]) == 0
        return SparseDelta.load(target)

    return train


def same_entries(first, second):
    return first.entries.keys() == second.entries.keys() and all(
        torch.equal(entry.indices, second.entries[name].indices)
        and torch.equal(entry.values, second.entries[name].values)
        for name, entry in first.entries.items()
    )


@pytest.mark.bits
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_does_what_its_setting_does(
    command, trained_by_the_library, usual, model, monkeypatch, options
):
    monkeypatch.setattr("sara_core.commands.train.prepare_training", lambda *_: copy.deepcopy(model))
    delta = command(*(word.replace("_", " ") for word in options.split(" ")))
    assert same_entries(delta, trained_by_the_library(**OPTIONS[options]))
    assert not same_entries(delta, usual)


@pytest.mark.bits
def test_a_rule_that_somebody_adds_is_given_the_loss_it_needs(command, usual, model, monkeypatch):
    monkeypatch.setattr("sara_core.commands.train.prepare_training", lambda *_: copy.deepcopy(model))
    monkeypatch.setitem(RULES, "mine", Rule(RULES["gradient"].choose, needs_loss=True))
    delta = command("--selection-rule", "mine")
    assert same_entries(delta, command("--selection-rule", "gradient")) and not same_entries(delta, usual)


def test_every_setting_has_an_option_that_is_tried_here():
    tried = {word for options in OPTIONS for word in re.findall("--[a-z-]+", options)}
    elsewhere = {"--count", "--threshold", "--caption-dropout", "--prior-weight", "--snapshot-every",
                 "--snapshots-kept"}  # fmt: skip
    assert set(map(option, SETTINGS)) <= tried | elsewhere


@pytest.mark.bits
def test_captions_that_are_dropped_are_replaced_by_empty_ones(base, tmp_path, command, usual, trained_by_the_library):
    dropped = command("--caption-dropout", "0.5")
    folder = tiny_diffusers.image_folder(tmp_path / "images")
    pictures = read_image_folder(folder).images
    prepared = prepare_training(base, pictures, 32, torch.device("cpu"), without_captions=True)
    assert same_entries(dropped, trained_by_the_library(prepared, caption_dropout=0.5))
    assert not same_entries(dropped, usual)
    everything = command("--caption-dropout", "1")
    for path in folder.glob("*.txt"):
        path.write_text("")
    without = prepare_training(base, read_image_folder(folder).images, 32, torch.device("cpu"), without_captions=True)
    assert same_entries(everything, trained_by_the_library(without, caption_dropout=1.0))


@pytest.mark.bits
def test_class_images_count_as_much_as_they_are_told_to(
    base, images, tmp_path, command, usual, trained_by_the_library, capsys
):
    folder = tiny_diffusers.image_folder(tmp_path / "others")
    (folder / "0.txt").unlink()
    delta = command("--class-folder", str(folder), "--prior-weight", "0.3")
    assert "In the class folder: 3 images with a caption\n1 image left out" in capsys.readouterr().err
    pictures, others = read_image_folder(images).images, read_image_folder(folder).images
    prepared = prepare_training(base, pictures, 32, torch.device("cpu"), class_images=others)
    assert same_entries(delta, trained_by_the_library(prepared, prior_weight=0.3))
    assert not same_entries(delta, usual)
    assert not same_entries(delta, command("--class-folder", str(folder)))
    assert '"images": 4' in delta.metadata["sara.training"]


@pytest.mark.bits
def test_a_class_caption_keeps_the_model_near_itself(command, usual):
    near = command("--class-caption", "a dog", "--prior-weight", "100")
    sizes = [sum(float(entry.values.square().sum()) for entry in one.entries.values()) for one in (near, usual)]
    assert sizes[0] < 0.9 * sizes[1]
    assert same_entries(near, command("--class-caption", "a dog", "--prior-weight", "100"))
    assert not same_entries(near, command("--class-caption", "a cat", "--prior-weight", "100"))


def test_a_run_with_other_class_images_is_not_resumed(base, images, tmp_path, stop_after):
    folder = tiny_diffusers.image_folder(tmp_path / "others")
    target, options = tmp_path / "out.safetensors", ["--class-folder", str(folder)]
    terminal = stop_after(2)
    assert main(["train", str(base), str(images), str(target), *USUAL, *options]) == 1
    snapshot, = (tmp_path / "out_snapshots").iterdir()
    (folder / "0.txt").write_text("another")
    assert main(["train", str(base), str(images), str(target), *USUAL, *options, "--resume", str(snapshot)]) == 1
    assert "this one is another (data: " in terminal.text


BAD = {
    "--steps 0": "argument --steps: '0' is no whole number from 1 to 1000000",
    "--batch-size 1.5": "argument --batch-size: '1.5' is no whole number from 1 to 1024",
    "--grad-accumulation x": "argument --grad-accumulation/--accumulation: 'x' is no whole number from 1 to 1024",
    "--learning-rate nan": "argument --learning-rate: 'nan' is no number from 0 to 1",
    "--warmup-steps -1": "argument --warmup-steps: '-1' is no whole number from 0 to 1000000",
    "--weight-decay -0.1": "argument --weight-decay: '-0.1' is no number from 0 to 10",
    "--max-grad-norm inf": "argument --max-grad-norm: 'inf' is no number from 0 to 1000",
    "--caption-dropout 1.5": "argument --caption-dropout: '1.5' is no number from 0 to 1",
    "--noise-level-std 0": "argument --noise-level-std: '0' is no number from 0.1 to 5",
    "--min-snr-gamma -1": "argument --min-snr-gamma: '-1' is no number from 0 to 100",
    "--prior-weight many": "argument --prior-weight: 'many' is no number from 0 to 100",
    "--seed -1": "argument --seed: '-1' is no whole number from 0 to 9223372036854775807",
    "--snapshot-every -1": "argument --snapshot-every: '-1' is no whole number from 0 to 1000000",
    "--snapshots-kept 0": "argument --snapshots-kept: '0' is no whole number from 1 to 1000",
    "--density 0": "argument --density: '0' is no number above 0 and at most 1",
    "--density 1.5": "argument --density: '1.5' is no number above 0 and at most 1",
    "--resolution 512.5": "argument --resolution: '512.5' is no whole number from 1 to 65536",
    "--optimizer Lion": "argument --optimizer: invalid choice: 'Lion'",
    "--schedule up": "argument --schedule: invalid choice: 'up'",
    "--noise-levels normal": "argument --noise-levels: invalid choice: 'normal'",
    "--selection-rule best": "argument --selection-rule: invalid choice: 'best'",
    "--layers none": "argument --layers: invalid choice: 'none'",
    "--count 5 --density 0.1": "not allowed with argument",
}


@pytest.mark.parametrize("options", BAD)
def test_values_that_an_option_cannot_have(base, images, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as ended:
        main(["train", str(base), str(images), str(tmp_path / "o.safetensors"), *options.split()])
    assert ended.value.code == 2 and BAD[options] in capsys.readouterr().err


REFUSED = {
    "--adjust-at half": "error: --adjust-at is 'half': it takes parts of the run between 0 and 1",
    "--adjust-at 0.5,1": "error: --adjust-at is '0.5,1': it takes parts",
    "--optimizer SGD": "set --learning-rate for SGD (0.1 is a start)",
    "--class-folder {tmp} --class-caption dog": "--class-folder has captions of its own",
    "--class-folder {tmp}/none": "There is no folder '{tmp}/none'",
    "--include no_such_layer": "matches no weight of this model",
    "--per-layer --count 5": "Per layer only a density has a meaning",
    "--selection-rule largest --threshold 0.1": "say by density or count how many weights it is to choose",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_refused_in_the_options_words(base, images, tmp_path, capsys, options):
    words = options.format(tmp=tmp_path).split()
    assert main(["train", str(base), str(images), str(tmp_path / "o.safetensors"), "--resolution", "32", *words]) == 1
    error = capsys.readouterr().err
    assert REFUSED[options].format(tmp=tmp_path) in error and "Traceback" not in error


def test_8_bit_moments_that_no_package_has_are_refused_before_the_model_is_loaded(
    base, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sara_core.training.optimizer_choice._adamw_8bit", lambda: None)
    monkeypatch.setattr("sara_core.commands.train.prepare_training", lambda *_: pytest.fail("it was begun"))
    options = ["--optimizer", "AdamW 8-bit"]
    assert main(["train", str(base), str(images), str(tmp_path / "o.safetensors"), *options]) == 1
    assert "neither is installed in this Python. Choose AdamW" in capsys.readouterr().err


IMPOSSIBLE = {
    "--threshold 9": "full fine-tuning", "--threshold 1e-12": "No weight is smaller than the threshold",
    "--count 2147483647": "full fine-tuning", "--density 1": "full fine-tuning", "--density 1e-12": "selects nothing",
    "--include no_such_layer": "matches no weight of this model", "--per-layer --count 5": "Per layer only a density",
}  # fmt: skip


@pytest.mark.parametrize("options", IMPOSSIBLE)
def test_what_cannot_be_selected_is_refused_before_anything_is_encoded(
    base, images, tmp_path, capsys, monkeypatch, options
):
    monkeypatch.setattr("sara_core.pipelines.prepare._encoded_images", lambda *_: pytest.fail("it was begun"))
    words = ["--resolution", "32", *options.split()]
    assert main(["train", str(base), str(images), str(tmp_path / "o.safetensors"), *words]) == 1
    assert IMPOSSIBLE[options] in capsys.readouterr().err


def test_a_name_that_leaves_no_room_for_that_of_a_snapshot_is_refused_before_the_work(base, images, tmp_path, capsys):
    for length, words in ((230, "With what a snapshot adds to it, OUT is too long"), (240, "is too long")):
        assert main(["train", str(base), str(images), str(tmp_path / ("x" * (length - 12) + ".safetensors"))]) == 1
        assert words in capsys.readouterr().err


def test_pictures_are_looked_at_before_the_model_is_loaded(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sara_core.commands.train.prepare_training", lambda *_: pytest.fail("it was begun"))
    folder = tiny_diffusers.image_folder(tmp_path / "images")
    Image.new("RGBA", (8, 8)).save(folder / "0.png")
    (folder / "2.png").write_bytes(b"")
    assert main(["train", str(base), str(folder), str(tmp_path / "o.safetensors")]) == 1
    assert "error: The image '2.png' is damaged or no image" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(folder / "2.png")
    with pytest.raises(pytest.fail.Exception):
        main(["train", str(base), str(folder), str(tmp_path / "o.safetensors")])
    assert "1 image with transparent places, which become white: 0.png" in capsys.readouterr().err


def test_the_help_has_every_setting_in_the_words_that_the_node_has_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")  # where a line breaks is not the question
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, setting in SETTINGS.items():
        assert f"{option(name)} " in told and setting.help in told, name
    for group in ("which weights are trained:", "the course of the training:", "the method:", "noise and captions:",
                  "class images:", "the model and its memory:", "stopping and going on:"):  # fmt: skip
        assert group in told
    assert "One of: 'constant', 'cosine', 'linear'. (default constant)" in told
