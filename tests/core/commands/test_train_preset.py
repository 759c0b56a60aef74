"""`train --preset`: it fills in what the caller has left open, and nothing else, and says what and why."""

import argparse

import pytest

from sara_core import SparseDelta
from sara_core.__main__ import main
from sara_core.commands.presets import apply_preset
from sara_core.commands.train_options import AMOUNTS, add_arguments


def filled(checkpoint, *options, pictures=20):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args([str(checkpoint), "folder", "out.safetensors", "--preset", "style", *options])
    return arguments, apply_preset(arguments, pictures, AMOUNTS)


def test_all_that_is_left_open_is_chosen_by_the_model(checkpoint):
    arguments, said = filled(checkpoint)
    assert (arguments.density, arguments.steps, arguments.batch_size, arguments.resolution) == (0.04, 400, 8, 64)
    assert arguments.learning_rate == 0 and arguments.adjust_at == ""
    assert "--resolution 64: this model is tiny" in said and len(said.splitlines()) == 7


def test_what_is_given_stays_even_where_it_is_the_default(checkpoint):
    arguments, said = filled(checkpoint, "--steps", "500", "--resolution", "512", "--adjust-at", "0.5")
    assert (arguments.steps, arguments.resolution, arguments.adjust_at, arguments.batch_size) == (500, 512, "0.5", 8)
    assert "--steps" not in said and "--batch-size 8" in said


@pytest.mark.parametrize("amount", ["--count 7", "--threshold 0.1", "--density 0.2"])
def test_one_of_the_amounts_keeps_its_place(checkpoint, amount):
    arguments, said = filled(checkpoint, *amount.split())
    assert arguments.density == (0.2 if "density" in amount else None) and "--density" not in said


def test_a_model_that_is_not_there_is_no_obstacle(tmp_path):
    arguments, _ = filled(tmp_path / "gone")
    assert (arguments.steps, arguments.resolution) == (500, 512)


def test_the_command_trains_by_it(base, images, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    own = ["--steps", "2", "--batch-size", "1", "--resolution", "32"]
    assert main(["train", str(base), str(images), str(target), "--preset", "subject", *own]) == 0
    assert "The preset 'subject' chooses" in capsys.readouterr().err
    assert 0.03 < SparseDelta.load(target).density < 0.05
