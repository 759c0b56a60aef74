"""SD.Next trains: a delta as the library gives it of the same pipeline, and afterwards everything of the host's is
back."""

import sys

import pytest
import torch
from PIL import Image

from sara_core import SparseDelta, TrainingError, UnsupportedModelError
from sara_core.__main__ import main
from tests.support import tiny_diffusers
from tests.webui.fakes.sdnext import sdnext_running
from tests.webui.fakes.sdnext_training import trainable
from tests.webui.training.beside_plain import trained

PIPELINES = {"SD1.5": tiny_diffusers.pipeline, "SDXL": tiny_diffusers.sdxl_pipeline}
SHORT = {
    "name": "style", "folder": "cats", "resolution": 64, "steps": 2, "density": 0.2, "learning_rate": 1e-2,
    "caption": "a thing", "batch_size": 2, "snapshot_every": 0,
}  # fmt: skip
_OPTIONS = ("--resolution", "64", "--steps", "2", "--density", "0.2", "--learning-rate", "1e-2", "--caption",
            "a thing", "--batch-size", "2", "--snapshot-every", "0")  # fmt: skip


@pytest.fixture
def webui(tmp_path):
    cats = tmp_path / "sara" / "pictures" / "cats"
    cats.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 40, 200 - 60 * number)).save(cats / f"{number}.png")
    with sdnext_running(tmp_path) as webui:
        webui.cats = cats
        yield webui


def _state_of_the_host(pipeline):
    unet = pipeline.unet
    return (
        {name: (weight, weight.clone()) for name, weight in unet.state_dict(keep_vars=True).items()},
        {name: (type(part), sorted(set(vars(part)) - {"forward", "_hf_hook"})) for name, part in unet.named_modules()},
        dict(unet.attn_processors), [getattr(block, "s1", None) for block in unet.up_blocks],
        torch.nn.functional.scaled_dot_product_attention,
        [hasattr(part, "_hf_hook") for part in (unet, pipeline.vae, pipeline.text_encoder)],
    )  # fmt: skip


def _check_is_back(before, after):
    assert after[1:] == before[1:]
    for name, (weight, bits) in before[0].items():
        assert after[0][name][0] is weight and torch.equal(weight, bits)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_delta_is_the_librarys(webui, tmp_path, kind):
    folder, target = tmp_path / "base", tmp_path / "alone.safetensors"
    made = PIPELINES[kind](tmp_path / "tokens")
    made.save_pretrained(folder)
    assert main(["train", str(folder), str(webui.cats), str(target), *_OPTIONS]) == 0
    # From the file as the library has it: on the CPU the last bits of a product hang on how its weight is aligned.
    pipeline = type(made).from_pretrained(folder)
    host = trainable(webui, pipeline)
    before = _state_of_the_host(pipeline)
    config = dict(pipeline.unet.config)
    progress = trained(host, SHORT, is_foretold=kind == "SD1.5", gradient_checkpointing=False)
    assert progress.phase == "finished", progress.message
    assert not progress.warnings and bool(progress.estimate) == (kind == "SD1.5")
    assert dict(pipeline.unet.config) == config
    assert any("learning rate" in line for line in webui.console.lines)
    _check_is_back(before, _state_of_the_host(pipeline))
    mine, wanted = SparseDelta.load(progress.delta), SparseDelta.load(target)
    assert mine.entries.keys() == wanted.entries.keys() and mine.metadata["sara.base_name"] == "one.safetensors"
    assert mine.metadata.get("sara.family") == wanted.metadata.get("sara.family")
    for name, entry in wanted.entries.items():
        assert torch.equal(mine.entries[name].indices, entry.indices)
        assert torch.equal(mine.entries[name].values, entry.values)


@pytest.mark.parametrize("end", ["stopped", "failed"])
def test_all_of_the_hosts_is_back_however_it_ends(webui, tmp_path, end, monkeypatch):
    pipeline = tiny_diffusers.pipeline(tmp_path / "tokens")
    host = trainable(webui, pipeline)
    before, shown = _state_of_the_host(pipeline), host.show_step

    def show_step(step, steps):
        shown(step, steps)
        webui.shared.state.interrupted = end == "stopped"
        if end == "failed":
            raise RuntimeError("broken")

    monkeypatch.setattr(host, "show_step", show_step)
    progress = trained(host, SHORT, prompts="a thing", batch_size=1)
    assert progress.phase == end, progress.message
    assert list(progress.drawn) == [0] and (webui.folder / "sara" / "style.safetensors").exists()
    _check_is_back(before, _state_of_the_host(pipeline))
    assert not sys.modules["modules.call_queue"].queue_lock.locked() and not webui.shared.state.interrupted


def test_inference_tensors_are_trained_as_a_copy(webui, tmp_path):
    pipeline = tiny_diffusers.pipeline(tmp_path / "tokens")
    host = trainable(webui, pipeline)
    with torch.inference_mode():
        for part in pipeline.unet.modules():
            for name, weight in part.named_parameters(recurse=False):
                part._parameters[name] = torch.nn.Parameter(weight.clone(), requires_grad=False)
    before = dict(pipeline.unet.named_parameters())
    with host.ready() as model:
        assert not any(weight.is_inference() for weight in model.unet.parameters())
    assert all(weight is before[name] for name, weight in pipeline.unet.named_parameters())


class Upscaler:
    unet = None


def test_what_cannot_be_trained_gets_one_line(webui, tmp_path):
    pipeline = tiny_diffusers.pipeline(tmp_path / "tokens")
    host, unet = trainable(webui, pipeline), pipeline.unet
    assert host.refusal() is None
    for mode in ("sequential", "group"):
        webui.shared.opts.diffusers_offload_mode = mode
        assert mode in host.refusal()
    webui.shared.opts.diffusers_offload_mode = "none"
    lora = sys.modules["modules.lora.lora_common"]
    lora.previously_loaded_networks = [1]
    with pytest.raises(UnsupportedModelError, match="A LoRA is still"), host.ready():
        pass
    lora.previously_loaded_networks = []
    for name, said in (("encoder_hid_proj", "IP adapter"), ("_compiled_call_impl", "compiled"),
                       ("fused_projections", "Fused")):  # fmt: skip
        before = getattr(unet, name, None)
        setattr(unet, name, object())
        assert said in host.refusal()
        setattr(unet, name, before)
    unet.conv_in.to(torch.float8_e4m3fn)
    assert "float8_e4m3fn" in host.refusal()
    webui.model = Upscaler()
    assert "SD1.5 and SDXL" in host.refusal()
    webui.model = None
    with pytest.raises(TrainingError, match="No model"), host.ready():
        pass
