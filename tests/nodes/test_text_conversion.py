"""LoRAs with parts for text encoders: into a delta and out again, as the stock Load LoRA has them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import text_encoders
from tests.support.adapter_files import loha, lora
from tests.support.toy_models import unload

LAYERS = {"SDXL": "input_blocks.4.1.transformer_blocks.0.attn2.to_q",
          "SD1.5": "input_blocks.1.1.transformer_blocks.0.attn2.to_q"}  # fmt: skip
# Of each file that trainers write: what stands before a text encoder's layer.
BEFORE = {
    "SD1.5": {"kohya": ["lora_te_"], "diffusers": ["text_encoder."], "ComfyUI": ["text_encoders.clip_l.transformer."]},
    "SDXL": {"kohya": ["lora_te1_", "lora_te2_"], "diffusers": ["text_encoder.", "text_encoder_2."],
             "ComfyUI": ["text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."]},
}  # fmt: skip
CASES = [("SD1.5", "kohya"), ("SD1.5", "diffusers"), ("SD1.5", "ComfyUI"), ("SDXL", "kohya")]
WIDTHS = {"clip_l": 64, "clip_g": 128}


@pytest.fixture(scope="module")
def bases(comfy):
    """MODEL and CLIP of a family, and the name of the checkpoint that both are of."""
    made = {}

    def base(family):
        if family not in made:
            tensors = text_encoders.checkpoint(family)
            path = comfy.base / "models" / "checkpoints" / f"text_{family}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
            made[family] = *text_encoders.loaded(tensors), path.name
        return made[family]

    yield base
    unload()


def lora_file(comfy, family, names):
    """Name of a LoRA of a layer of the UNet and of three layers of each text encoder."""
    of_unet = f"lora_unet_{LAYERS[family].replace('.', '_')}"
    tensors = {of_unet + part: tensor for part, tensor in lora(320, 320).items()}
    for number, before in enumerate(BEFORE[family][names]):
        width = list(WIDTHS.values())[number]
        for module, shape in (("self_attn.q_proj", (width, width)), ("mlp.fc1", (96, width)), ("mlp.fc2", (width, 96))):
            layer = f"text_model.encoder.layers.{number}.{module}"
            layer = layer.replace(".", "_") if before.endswith("_") else layer
            parts = lora(*shape) if module != "mlp.fc1" else loha(*shape) | {".alpha": torch.tensor(2.0)}
            tensors |= {before + layer + part: tensor for part, tensor in parts.items()}
    path = comfy.base / "models" / "loras" / f"{family}_{names}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path.name


def with_lora(comfy, model, clip, name, strength=1.0, strength_clip=1.0):
    """The weights that files here change, with a file in the stock Load LoRA."""
    patched = comfy.execute("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=strength,
                            strength_clip=strength_clip).outputs  # fmt: skip
    return weights_of(*patched)


def weights_of(model, clip):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    name = next(name for name in (f"diffusion_model.{layer}.weight" for layer in LAYERS.values())
                if name in model.model.state_dict())  # fmt: skip
    found = {name: model.model.state_dict()[name].clone()} | text_encoders.text_weights(clip)
    unload()
    return found


def assert_near(found, expected, base):
    """Every change arrives, to float32's rounding of a sum of products."""
    assert found.keys() == expected.keys()
    changed = [name for name, weight in expected.items() if not torch.equal(weight, base[name])]
    assert any(name.startswith("clip_") for name in changed) and any(name.startswith("diff") for name in changed)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[name], base[name]) == (name not in changed), name


@pytest.mark.parametrize("family, names", CASES)
def test_a_converted_lora_is_the_lora(comfy, bases, family, names):
    model, clip, checkpoint = bases(family)
    file = lora_file(comfy, family, names)
    base, expected = weights_of(model, clip), with_lora(comfy, model, clip, file, 0.7, -0.5)
    delta, report, *_ = comfy.execute("SaRAConvert", file_name=file, base_name=checkpoint, density=100.0, to="sara",
                                      filename_prefix="sara/with_text").outputs  # fmt: skip
    assert "CLIP-L" in report and ("CLIP-G" in report) == (family == "SDXL") and "Left out" not in report
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=0.7, clip=clip, strength_clip=-0.5).outputs
    assert_near(weights_of(*patched), expected, base)


@pytest.mark.parametrize("to", ["diff", "lora"])
@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_what_is_written_for_load_lora_has_the_text_encoders(comfy, bases, family, to):
    model, clip, checkpoint = bases(family)
    file = lora_file(comfy, family, "kohya")
    base, expected = weights_of(model, clip), with_lora(comfy, model, clip, file)
    delta = comfy.execute("SaRAConvert", file_name=file, base_name=checkpoint, density=100.0, to="none").outputs[0]
    comfy.execute("SaRAConvert", delta=delta, to=to, rank=128, filename_prefix=f"loras/{family}_{to}")
    (written,) = (comfy.base / "output" / "loras").glob(f"{family}_{to}_*")
    found = with_lora(comfy, model, clip, written.name)
    for name, weight in expected.items():
        share = (found[name] - weight).norm() / max((weight - base[name]).norm(), 1e-9)
        assert share < 2e-3 or torch.equal(found[name], base[name]) and torch.equal(weight, base[name]), name


def test_it_comes_back_from_what_is_written(comfy, bases):
    _, _, checkpoint = bases("SDXL")
    file = lora_file(comfy, "SDXL", "diffusers")
    delta = comfy.execute("SaRAConvert", file_name=file, base_name=checkpoint, density=0.02, to="none").outputs[0]
    comfy.execute("SaRAConvert", delta=delta, to="diff", filename_prefix="loras/there")
    (written,) = (comfy.base / "output" / "loras").glob("there_*")
    back = comfy.execute("SaRAConvert", file_name=written.name, base_name=checkpoint, to="none").outputs[0]
    assert back.entries.keys() == delta.entries.keys()
    for name, entry in delta.entries.items():
        assert torch.equal(back.entries[name].indices, entry.indices)
        assert torch.equal(back.entries[name].values, entry.values)


def test_the_density_holds_for_each_part_so_that_the_models_is_what_it_was(comfy, bases):
    _, _, checkpoint = bases("SD1.5")
    file = lora_file(comfy, "SD1.5", "kohya")
    path = comfy.base / "models" / "loras" / file
    alone = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("lora_te")}
    save_file(alone, path.with_name("alone.safetensors"))
    delta, other = (
        comfy.execute("SaRAConvert", file_name=name, base_name=checkpoint, density=0.05, to="none").outputs[0]
        for name in (file, "alone.safetensors")
    )
    of_text = [name for name in delta.entries if name.startswith("text_encoders.")]
    assert delta.entries.keys() - of_text == other.entries.keys()
    for name, entry in other.entries.items():
        assert torch.equal(delta.entries[name].indices, entry.indices)
    assert sum(len(delta.entries[name].indices) for name in of_text) == round(0.0005 * (64 * 64 + 2 * 64 * 96))


def test_saved_merged_and_inspected_it_keeps_the_text_encoders(comfy, bases):
    model, _, checkpoint = bases("SD1.5")
    file = lora_file(comfy, "SD1.5", "kohya")
    delta = comfy.execute("SaRAConvert", file_name=file, base_name=checkpoint, density=1.0, to="none").outputs[0]
    comfy.execute("SaRASave", delta=delta, filename_prefix="sara/kept", values="bf16", model=model)
    loaded = type(delta).load(next((comfy.base / "output" / "sara").glob("kept_*")))
    assert loaded.entries.keys() == delta.entries.keys()
    merged = comfy.execute(
        "SaRAMerge", **{"deltas.delta_1": delta, "deltas.delta_2": delta}, weights="1, -0.5"
    ).outputs[0]
    assert merged.entries.keys() == delta.entries.keys()
    for name, entry in delta.entries.items():
        assert torch.equal(merged.entries[name].values, entry.values + -0.5 * entry.values)
    report = comfy.execute("SaRAInspect", delta=delta, model=model, threshold=0.002).outputs[0]
    assert "CLIP-L" in report and "diffusion model" in report


def test_baked_into_its_checkpoint_it_is_what_apply_gives(comfy, bases):
    model, clip, checkpoint = bases("SDXL")
    file = lora_file(comfy, "SDXL", "diffusers")
    delta = comfy.execute("SaRAConvert", file_name=file, base_name=checkpoint, density=1.0, to="none").outputs[0]
    patched = comfy.execute("SaRAApply", model=model, delta=delta, strength=0.5, clip=clip, strength_clip=0.5).outputs
    expected = weights_of(*patched)
    (filename,) = comfy.execute("SaRABake", ckpt_name=checkpoint, delta=delta, strength=0.5,
                                filename_prefix="checkpoints/text").outputs  # fmt: skip
    found = weights_of(*text_encoders.loaded(load_file(comfy.base / "output" / filename)))
    different = [name for name, weight in expected.items() if not torch.equal(weight, found[name])]
    # What a checkpoint file of SDXL does not have of CLIP-L, the host makes anew for each.
    assert set(different) <= {"clip_l.transformer.text_projection.weight", "clip_l.logit_scale"}
