"""The command line: merge, extract, inspect and bake do what the library does, and say what went wrong in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core import SparseDelta, SparseEntry, extract, merge
from sara_core.__main__ import main
from sara_core.merging.block_factors import block_presets, parse_blocks
from sara_core.models.bake import bake

SHAPE = (20, 30)
NAMES = ("input_blocks.1.attn1.to_q.weight", "output_blocks.1.conv.weight")


def delta(seed):
    generator = torch.Generator().manual_seed(seed)
    indices = torch.arange(seed, 600, 7, dtype=torch.int32)
    return SparseDelta(
        {f"diffusion_model.{n}": SparseEntry(indices, torch.randn(len(indices), generator=generator), SHAPE)
         for n in NAMES},
        {"sara.family": "SD1.5", "modelspec.trigger_phrase": "ink style"},
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with two deltas, a=1.safetensors among them, and a base."""
    monkeypatch.chdir(tmp_path)
    delta(1).save("a=1.safetensors")
    delta(2).save("b.safetensors")
    generator = torch.Generator().manual_seed(3)
    weights = {f"model.diffusion_model.{n}": torch.randn(SHAPE, generator=generator).half() for n in NAMES}
    save_file(weights, "base.safetensors")
    return tmp_path


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def assert_same_delta(path, expected):
    found = SparseDelta.load(path)
    assert found.entries.keys() == expected.entries.keys()
    for name, (indices, values, _) in expected.entries.items():
        assert torch.equal(found.entries[name].indices, indices) and torch.equal(found.entries[name].values, values)


def test_merge(folder, capsys):
    run("merge", "sum.safetensors", "a=1.safetensors=0.6", "b.safetensors=-0.4")
    assert_same_delta("sum.safetensors", merge([delta(1), delta(2)], [0.6, -0.4]))
    assert "a=1 at weight 0.6" in capsys.readouterr().out
    run("merge", "one.safetensors", "a=1.safetensors")
    assert_same_delta("one.safetensors", delta(1))


def test_merge_with_every_setting(folder):
    run(
        "merge", "ties.safetensors", "a=1.safetensors", "b.safetensors", "--method", "ties", "--keep", 0.3, "--sign",
        "count", "--preset", "input blocks", "--block", "attn1 = 2, 1", "--block", "to_q = 0.5",
    )  # fmt: skip
    blocks = (*block_presets()["input blocks"], *parse_blocks("attn1 = 2, 1\nto_q = 0.5"))
    expected = merge([delta(1), delta(2)], 1.0, "ties", keep=0.3, sign="count", blocks=blocks)
    assert_same_delta("ties.safetensors", expected)
    run("merge", "dare.safetensors", "b.safetensors=2", "--method", "dare", "--seed", 5)
    assert_same_delta("dare.safetensors", merge([delta(2)], 2.0, "dare", seed=5))


def test_bake_rounds_once_for_all_deltas(folder):
    run("bake", "base.safetensors", "out.safetensors", "a=1.safetensors=0.5", "b.safetensors")
    assert_same_tensors("out.safetensors", delta(1) * 0.5 + delta(2), 1.0)
    run("bake", "base.safetensors", "one.safetensors", "b.safetensors=-2")
    assert_same_tensors("one.safetensors", delta(2), -2.0)


def assert_same_tensors(path, delta, strength):
    bake("base.safetensors", "expected.safetensors", delta, strength)
    baked, expected = load_file(path), load_file("expected.safetensors")
    assert baked.keys() == expected.keys() and all(torch.equal(baked[name], expected[name]) for name in expected)


def test_extract(folder, capsys):
    bake("base.safetensors", "tuned.safetensors", delta(1))
    for options, rule in (
        ([], {}), (["--count", 9], {"count": 9}), (["--density", 0.01], {"density": 0.01}),
        (["--support", "b.safetensors"], {"support": delta(2)}),
    ):  # fmt: skip
        run("extract", "base.safetensors", "tuned.safetensors", "out.safetensors", *options)
        assert_same_delta("out.safetensors", extract("base.safetensors", "tuned.safetensors", **rule))
        assert "relative error" in capsys.readouterr().out


def test_inspect(folder, capsys):
    run("inspect", "b.safetensors")
    assert "ink style" in capsys.readouterr().out
    run("inspect", "b.safetensors", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["elements"] == delta(2).nnz and facts["settings"]["family"] == "SD1.5"
    assert facts["bytes"] == (folder / "b.safetensors").stat().st_size


@pytest.mark.parametrize("arguments, words", [
    (["inspect", "base.safetensors"], "whole checkpoint"),
    (["merge", "out.safetensors", "none.safetensors"], "does not exist"),
    (["merge", "out.safetensors", "b.safetensors", "--block", "attn9 = 0"], "fits none"),
    (["extract", "base.safetensors", "base.safetensors", "out.safetensors"], "nothing to extract"),
    (["bake", "b.safetensors", "out.safetensors", "b.safetensors"], "None of the delta's"),
], ids=lambda value: value[0] if isinstance(value, list) else "")  # fmt: skip
def test_errors_are_said_in_words(folder, capsys, arguments, words):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out and not (folder / "out.safetensors").exists()


def test_a_weight_that_is_no_number_is_refused(folder, capsys):
    for weight in ("much", "nan", ""):
        with pytest.raises(SystemExit):
            main(["merge", "out.safetensors", f"b.safetensors={weight}"])
        assert "is no number" in capsys.readouterr().err
