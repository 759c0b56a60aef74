"""LT-SFT files, written the way composable-sft does."""

import math

import numpy
import pytest
import torch

from sara_core.conversion.read import read_delta
from sara_core.conversion.sparse.lt_sft import whole_weights
from sara_core.errors import DeltaError
from sara_core.files.source import Source
from sara_core.models.base import Base
from tests.support.foreign_files import assert_equal_weights, pipeline_folder, small_sd3, small_unet, weights_of


def encoded(change):
    """One parameter's change: positions count the first side fastest, and the first step is a NumPy number."""
    sides = list(change.shape)
    places = change.nonzero()
    weights = numpy.cumprod([1, *sides[:-1]], dtype=numpy.int64)
    flat = places.numpy().astype(numpy.int64) @ weights
    order = numpy.argsort(flat)
    steps = numpy.diff(flat[order]).tolist()
    return {
        "size": change.shape,
        "index_steps": [flat[order][0], *steps] if len(flat) else [],
        "values": change[tuple(places[torch.from_numpy(order)].T)],
    }


def tuned(model, share=0.01, seed=1):
    """Changes a share of every parameter; returns the changes."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, parameter in model.named_parameters():
        change = torch.randn(parameter.shape, generator=generator)
        change[torch.rand(parameter.shape, generator=generator) > share] = 0
        parameter.data += change
        changes[name] = change
    return changes


@pytest.mark.parametrize("make", [small_unet, small_sd3])
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_file_of_changes_does_what_it_does_in_its_own_library(tmp_path, make, form):
    model = make()
    base = pipeline_folder(tmp_path / "base", model)
    changes = tuned(model)
    (tmp_path / "sft").mkdir()
    torch.save({"diffs": {name: encoded(change) for name, change in changes.items()}, "abs": {}},
               tmp_path / "sft" / "pytorch_diff.bin")  # fmt: skip
    path = tmp_path / "sft" / ("pytorch_diff.bin" if form == "file" else "")
    weights = weights_of(base)
    read_delta(path, base).delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", model)))


def test_without_a_base_the_names_of_the_usual_models_are_known(tmp_path):
    model = small_unet()
    base = pipeline_folder(tmp_path / "base", model)
    content = {"diffs": {name: encoded(change) for name, change in tuned(model).items()}}
    torch.save(content, tmp_path / "pytorch_diff.bin")
    alone, beside = (read_delta(tmp_path / "pytorch_diff.bin", given).delta for given in (None, base))
    assert_equal_weights({n: e.indices for n, e in alone.entries.items()},
                         {n: e.indices for n, e in beside.entries.items()})  # fmt: skip


def test_values_that_were_saved_as_parameters_ask_for_no_gradient(tmp_path):
    sound = SOUND | {"values": torch.nn.Parameter(SOUND["values"])}
    torch.save({"diffs": {NAME: sound}}, tmp_path / "x.bin")
    delta = read_delta(tmp_path / "x.bin").delta
    assert delta.entries and not any(entry.values.requires_grad for entry in delta.entries.values())


def test_names_of_another_model_stay_as_they_are(tmp_path):
    change = torch.zeros(4, 5)
    change[1, 2], change[3, 0] = 1.0, 2.0
    torch.save({"diffs": {"bert.layer.0.weight": encoded(change)}, "abs": {}}, tmp_path / "pytorch_diff.bin")
    delta = read_delta(tmp_path / "pytorch_diff.bin").delta
    assert list(delta.entries) == ["bert.layer.0.weight"]
    assert delta.entries["bert.layer.0.weight"].indices.tolist() == [7, 15]
    assert delta.entries["bert.layer.0.weight"].values.tolist() == [1.0, 2.0]


def test_whole_weights_become_differences_from_the_base(tmp_path):
    model = small_unet()
    base = pipeline_folder(tmp_path / "base", model)
    changes = tuned(model)
    whole = "mid_block.resnets.0.conv1.weight"
    torch.save(
        {
            "diffs": {name: encoded(change) for name, change in changes.items() if name != whole},
            "abs": {whole: dict(model.named_parameters())[whole].detach()},
        },
        tmp_path / "pytorch_diff.bin",
    )
    weights = weights_of(base)
    read_delta(tmp_path / "pytorch_diff.bin", base).delta.apply_(weights)
    assert_equal_weights(weights, weights_of(pipeline_folder(tmp_path / "tuned", model)))
    with pytest.raises(DeltaError, match="beside the base model"):
        read_delta(tmp_path / "pytorch_diff.bin")


def test_a_weight_that_is_changed_by_elements_and_as_a_whole_is_refused(tmp_path):
    model = small_unet()
    base = pipeline_folder(tmp_path / "base", model)
    twice = "mid_block.resnets.0.conv1.weight"
    content = {
        "diffs": {name: encoded(change) for name, change in tuned(model).items()},
        "abs": {twice: dict(model.named_parameters())[twice].detach()},
    }
    torch.save(content, tmp_path / "pytorch_diff.bin")
    with pytest.raises(DeltaError, match=f"'{twice}' in several ways at once"):
        read_delta(tmp_path / "pytorch_diff.bin", base, 0.5)


@pytest.mark.parametrize("with_base", [True, False])
def test_what_is_sparse_is_not_thinned(tmp_path, base, with_base):
    torch.save({"diffs": {NAME: SOUND}}, tmp_path / "x.bin")
    with pytest.raises(DeltaError, match="sparse already .* leave the density out"):
        read_delta(tmp_path / "x.bin", base if with_base else None, density=0.5)


def test_what_other_libraries_allow_files_to_do_is_not_allowed_here(tmp_path):
    """And is allowed to them again afterwards."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([print])
    try:
        torch.save({"diffs": {"a.weight": print}, "abs": {}}, tmp_path / "x.bin")
        with pytest.raises(DeltaError, match="plain data"):
            read_delta(tmp_path / "x.bin")
        assert print in torch.serialization.get_safe_globals()
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
SOUND = {"size": torch.Size([64, 64]), "index_steps": [3, 4, 5], "values": torch.ones(3)}
HOSTILE = {
    "size missing": {"size": None},
    "size a list of texts": {"size": ("64", "64")},
    "size negative": {"size": (-64, -64)},
    "size empty": {"size": (64, 0)},
    "size too large": {"size": (2**20, 2**20)},
    "size of another weight": {"size": (32, 128)},
    "steps missing": {"index_steps": None},
    "steps a text": {"index_steps": "345"},
    "steps fractions": {"index_steps": [3.0, 4.0, 5.0]},
    "steps truth values": {"index_steps": [True, True, True]},
    "a step back": {"index_steps": [3, -2, 5]},
    "a step to the same place": {"index_steps": [3, 0, 5]},
    "a step too far": {"index_steps": [3, 4, 64 * 64]},
    "steps that lead too far": {"index_steps": [4000, 90, 90]},
    "a step beyond int64": {"index_steps": [3, 2**80, 5]},
    "fewer steps": {"index_steps": [3, 4]},
    "values missing": {"values": None},
    "values whole numbers": {"values": torch.ones(3).long()},
    "values in two dimensions": {"values": torch.ones(1, 3)},
    "values NaN": {"values": torch.tensor([1.0, math.nan, 1.0])},
    "values infinite": {"values": torch.tensor([1.0, math.inf, 1.0])},
    "a NumPy object": {"values": numpy.ones(3)},
    "a NumPy fraction": {"index_steps": [numpy.float64(3), 4, 5]},
    "a program object": {"values": print},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipeline_folder(tmp_path_factory.mktemp("sft") / "base", small_unet())


def test_the_untouched_change_is_sound(tmp_path, base):
    torch.save({"diffs": {NAME: SOUND}, "abs": {}}, tmp_path / "x.bin")
    (entry,) = read_delta(tmp_path / "x.bin", base).delta.entries.values()
    assert entry.indices.tolist() == [3 * 64, 7 * 64, 12 * 64]


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(tmp_path, base, what):
    torch.save({"diffs": {NAME: SOUND | HOSTILE[what]}, "abs": {}}, tmp_path / "x.bin")
    with pytest.raises(DeltaError):
        read_delta(tmp_path / "x.bin", base)


@pytest.mark.parametrize(
    "content",
    [
        {"diffs": [1, 2], "abs": {}},
        {"diffs": {3: SOUND}, "abs": {}},
        {"diffs": {NAME: 3}, "abs": {}},
        {"diffs": {}, "abs": {}},
        {"diffs": {}, "abs": {NAME: torch.ones(3)}},
        {"diffs": {}, "abs": {NAME: "text"}},
        {"diffs": {}, "abs": {3: torch.ones(64, 64)}},
        {"diffs": {}, "abs": [1]},
        {"diffs": {NAME: SOUND}, "abs": torch.ones(3)},
    ],
)
def test_contents_of_another_structure_are_refused(tmp_path, base, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(DeltaError):
        read_delta(tmp_path / "x.bin", base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_whole_weights_in_half_precision_become_differences_in_single(dtype):
    name, base = "conv_in.weight", {"conv_in.weight": torch.full((3, 2), 2.0**-12, dtype=dtype)}
    whole = torch.nn.Parameter(torch.ones(3, 2, dtype=dtype))
    (found, change), = whole_weights({"abs": {name: whole}}, Base(Source("base", tensors=base)))
    assert found == name and change.dtype == torch.float32 and not change.requires_grad
    assert change.unique().tolist() == [1 - 2.0**-12]
