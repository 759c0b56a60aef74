"""Files of every kind through the command line and the node, and pairs of models."""

import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from sara_core.__main__ import main
from sara_core.conversion.read import read_delta
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.errors import DeltaError
from tests.support.family_models import FAMILIES
from tests.support.foreign_files import (
    assert_equal_weights, checkpoint_file, pipeline_folder, small_sd3, small_unet, weights_of,
)  # fmt: skip


def tuned_folder(folder, make, share=0.02):
    model = make()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        chosen = torch.rand(parameter.shape, generator=generator) < share
        parameter.data[chosen] *= 1.5
    return pipeline_folder(folder, model)


@pytest.mark.parametrize("make", [small_unet, small_sd3])
@pytest.mark.parametrize("forms", [("folder", "folder"), ("folder", "file"), ("file", "folder"), ("file", "file")])
def test_two_models_in_any_form_give_their_difference(tmp_path, make, forms):
    folders = pipeline_folder(tmp_path / "base", make()), tuned_folder(tmp_path / "tuned", make)
    base, tuned = (
        folder if form == "folder" else checkpoint_file(tmp_path / f"{folder.name}.safetensors", weights_of(folder))
        for folder, form in zip(folders, forms)
    )
    conversion = read_delta(tuned, base)
    weights = weights_of(base)
    conversion.delta.apply_(weights)
    assert_equal_weights(weights, weights_of(tuned))
    assert all(name.startswith("diffusion_model.") for name in conversion.delta.entries)


def test_a_density_cuts_the_difference_and_reports_what_is_lost(tmp_path):
    base, tuned = pipeline_folder(tmp_path / "base", small_unet()), tuned_folder(tmp_path / "tuned", small_unet)
    whole, cut = read_delta(tuned, base), read_delta(tuned, base, density=0.005)
    elements = sum(weight.numel() for weight in weights_of(base).values())
    assert cut.delta.nnz == round(0.005 * elements) < whole.delta.nnz and whole.lost == pytest.approx(0)
    squares = [sum(float(e.values.double().square().sum()) for e in c.delta.entries.values()) for c in (whole, cut)]
    assert cut.lost == pytest.approx(1 - squares[1] / squares[0]) and cut.lost > 0


def test_a_model_with_parameters_called_alpha_is_still_a_model(tmp_path):
    base = {"model.diffusion_model.a.weight": torch.zeros(8, 8), "model.diffusion_model.snake.alpha": torch.zeros(8)}
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    assert read_delta(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors").source == "A whole model"


def delta_file(path, weights):
    """A delta of every kind of parameter, saved."""
    entries = {
        name: SparseEntry(
            torch.tensor([0, weight.numel() - 1], dtype=torch.int32), torch.tensor([0.5, -0.25]), tuple(weight.shape)
        )
        for name, weight in weights.items()
        if weight.numel() > 1
    }
    SparseDelta(entries).save(path)
    return path


def run(capsys, *arguments):
    status = main(["convert", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_line_goes_round_all_formats(tmp_path, capsys):
    base = pipeline_folder(tmp_path / "base", small_unet())
    delta = delta_file(tmp_path / "delta.safetensors", weights_of(base))
    status, said, _ = run(capsys, delta, tmp_path / "diff.safetensors", "--to", "diff")
    assert status == 0 and "MB of dense differences" in said
    status, said, _ = run(capsys, tmp_path / "diff.safetensors", tmp_path / "back.safetensors", "--base", base)
    assert status == 0 and f"{SparseDelta.load(delta).nnz:,} changes" in said
    before, after = (SparseDelta.load(path).entries for path in (delta, tmp_path / "back.safetensors"))
    assert_equal_weights({n: e.values for n, e in before.items()}, {n: e.values for n, e in after.items()})
    status, said, _ = run(capsys, delta, tmp_path / "lora.safetensors", "--to", "lora", "--rank", "3")
    assert status == 0 and "rank 3" in said and "diffusion_model.out.2.weight" in said
    status, said, _ = run(capsys, tmp_path / "lora.safetensors", tmp_path / "cut.safetensors", "--base", base,
                          "--density", "0.01")  # fmt: skip
    assert status == 0 and SparseDelta.load(tmp_path / "cut.safetensors").nnz > 0
    status, said, _ = run(capsys, delta, tmp_path / "peft", "--to", "shira", "--base", base)
    assert status == 0 and "Linear layers for PEFT" in said
    assert peft.PeftModel.from_pretrained(small_unet(), tmp_path / "peft")
    status, said, _ = run(capsys, tmp_path / "peft", tmp_path / "again.safetensors", "--base", base)
    assert status == 0 and "SHiRA" in said


def test_an_error_is_said_in_words_with_status_one(tmp_path, capsys):
    status, said, error = run(capsys, tmp_path / "none.pt", tmp_path / "x.safetensors")
    assert (status, said) == (1, "") and error.startswith("error: ") and "none.pt" in error and "Traceback" not in error


def test_the_command_line_runs_as_a_module(tmp_path):
    import subprocess

    done = subprocess.run([sys.executable, "-m", "sara_core", "convert", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--density" in done.stdout


@pytest.mark.parametrize("what", ["a text", "nothing", "a picture's tensors", "an empty folder", "a pickled list"])
def test_what_is_none_of_the_kinds_is_refused_by_name(tmp_path, what):
    path = tmp_path / "thing"
    if what == "a text":
        path.write_text("hello")
    elif what == "nothing":
        path.write_bytes(b"")
    elif what == "an empty folder":
        path.mkdir()
    elif what == "a pickled list":
        torch.save([1, 2], path)
    else:
        save_file({"latent": torch.zeros(3)}, path)
    with pytest.raises(DeltaError, match="thing"):
        read_delta(path, pipeline_folder(tmp_path / "base", small_unet()))


@pytest.fixture(scope="module")
def installed(comfy):
    """A base model, a LoRA for it and a pipeline where the host's menus look for them."""
    import folder_paths

    models = comfy.base / "models"
    for folder in ("checkpoints", "loras"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    weights = FAMILIES["SD1.5"].state_dict()
    checkpoint = {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}
    save_file(checkpoint, models / "checkpoints" / "convert.safetensors")
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            "lora_unet_time_embed_0.lora_up.weight": torch.randn(1280, 4, generator=generator),
            "lora_unet_time_embed_0.lora_down.weight": torch.randn(4, 320, generator=generator),
        },
        models / "loras" / "style.safetensors",
    )
    pipeline = pipeline_folder(models / "diffusers" / "small", small_unet())
    (pipeline / "model_index.json").write_text("{}")
    folder_paths.filename_list_cache.clear()
    return weights


def test_the_node_converts_a_lora_that_load_lora_could_load(comfy, installed):
    result = comfy.execute("SaRAConvert", file_name="style.safetensors", base_name="convert.safetensors", density=1.0)
    delta, report = result.outputs
    assert delta.nnz == round(0.01 * sum(weight.numel() for weight in installed.values()))
    assert "Lost with the smaller changes" in report and "Saved as output/sara/converted_" in report
    name = report.splitlines()[-1].removeprefix("Saved as output/")
    assert SparseDelta.load(comfy.base / "output" / name).nnz == delta.nnz


def test_the_node_writes_a_connected_delta_in_every_format(comfy, installed):
    delta = comfy.execute(
        "SaRAConvert", file_name="style.safetensors", base_name="convert.safetensors", density=1.0, to="none"
    ).outputs[0]
    for to in ("diff", "lora", "shira"):
        report = comfy.execute("SaRAConvert", file_name="none", base_name="none", to=to, delta=delta,
                               filename_prefix=f"sara/{to}", rank=2).outputs[1]  # fmt: skip
        path = comfy.base / "output" / report.splitlines()[-1].removeprefix("Saved as output/")
        assert path.name.startswith(to) and (path.is_dir() if to == "shira" else load_file(path))


def test_the_node_offers_pipelines_as_bases(comfy, installed):
    base_options = comfy.node_class("SaRAConvert").INPUT_TYPES()["required"]["base_name"][1]["options"]
    assert "diffusers/small" in base_options and "none" in base_options
    foreign = comfy.pack_module("nodes.host.model_files")
    assert (foreign.base_path("diffusers/small") / "unet").is_dir()


def test_the_node_without_anything_to_convert_says_so(comfy, installed):
    with pytest.raises(Exception, match="choose a file, or connect a delta"):
        comfy.execute("SaRAConvert", file_name="none", base_name="none")
