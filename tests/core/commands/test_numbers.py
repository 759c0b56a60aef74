"""Every number that a command takes is one, in its range: or the option is named, before anything is opened."""

import argparse

import pytest

from sara_core.__main__ import main
from sara_core.commands import COMMANDS

# What no option takes, whatever its range; what a range allows is its own.
NEVER = ["nan", "inf", "-inf", "1e400", "1e308", "1e-400", "0x10", "1_000", "０.５", "true", "0,5", "", " ", "1e",
         "[1]"]  # fmt: skip
# Options that take several numbers, with commas between them, and name the one that is none.
OF_SEVERAL = {"--repeats"}


def numeric_options():
    """Command, option and metavar of all options that are read as numbers."""
    for name, command in COMMANDS.items():
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        for action in parser._actions:
            if action.type is not None and action.option_strings and action.dest not in ("base", "file"):
                yield name, action.option_strings[0]


def required(name, tmp_path):
    return {
        "convert": [tmp_path / "in", tmp_path / "out"], "merge": [tmp_path / "out", tmp_path / "a"],
        "extract": [tmp_path / "base", tmp_path / "tuned", tmp_path / "out"],
        "train": [tmp_path / "base", tmp_path / "images", tmp_path / "out.safetensors"],
    }[name]  # fmt: skip


OPTIONS = sorted(set(numeric_options()))


def test_the_options_are_all_found():
    assert {("train", "--learning-rate"), ("train", "--density"), ("merge", "--keep"), ("merge", "--seed"),
            ("extract", "--count"), ("convert", "--rank"), ("train", "--resolution")} <= set(OPTIONS)  # fmt: skip


@pytest.mark.parametrize("name, option", OPTIONS)
@pytest.mark.parametrize("text", NEVER)
def test_what_is_no_number_is_named_with_its_option(tmp_path, capsys, name, option, text):
    with pytest.raises(SystemExit) as ended:
        main([name, *map(str, required(name, tmp_path)), f"{option}={text}"])
    error = capsys.readouterr().err
    named = text.partition(",")[0] if option in OF_SEVERAL else text
    assert ended.value.code == 2 and f"argument {option}" in error and f"'{named}' is no " in error


@pytest.mark.parametrize("text", [text for text in NEVER if text])
@pytest.mark.parametrize("command", ["merge", "bake"])
def test_weights_behind_a_file_too(tmp_path, capsys, command, text):
    places = [str(tmp_path / "out")] if command == "merge" else [str(tmp_path / "base"), str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([command, *places, f"{tmp_path / 'a'}={text}"])
    assert ended.value.code == 2 and f"'{text}' in " in capsys.readouterr().err


@pytest.mark.parametrize("factors", ["nan", "inf", "1e400", "0,5", "０.５", "1;2", "", "1_0"])
def test_block_factors_too(tmp_path, capsys, factors):
    arguments = ["merge", str(tmp_path / "out.safetensors"), str(tmp_path / "a"), "--block", f"attn = {factors}"]
    assert main(arguments) == 1
    assert f"The block line 'attn = {factors}".rstrip() in capsys.readouterr().err
