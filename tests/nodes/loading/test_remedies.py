"""What SaRA Loader and SaRA Convert tell people to do with files that they do not take as they are."""

import pytest
import torch
from safetensors.torch import save_file

LOAD_LORA = "Load it with the Load LoRA node instead."
LOAD_MODEL = "Load it with the Load Checkpoint or Load Diffusion Model node instead."
CONVERT = "Convert it with the SaRA Convert node first."
SENTENCES = {
    "lora_unet_a.lora_up.weight": f"It looks like a LoRA. {LOAD_LORA}",
    "a.lora_A.weight": f"It looks like a LoRA. {LOAD_LORA}",
    "a.processor.qkv_lora1.up.weight": f"It looks like a LoRA. {LOAD_LORA}",
    "a.hada_w1_a": f"It looks like a LoHa or LoKr adapter (LyCORIS). {LOAD_LORA}",
    "a.oft_blocks": f"It looks like an OFT or BOFT adapter. {LOAD_LORA}",
    "a.on_input": f"It looks like an IA³ adapter (LyCORIS). {CONVERT}",
    "a.diff_b": f"It looks like a dense weight difference. {LOAD_LORA}",
    "a.shira_weight": f"It looks like a sparse adapter of PEFT. {CONVERT}",
    "a.supertuning_values": f"It looks like a sparse adapter of PEFT. {CONVERT}",
    "model.diffusion_model.out.2.weight": f"It looks like a whole checkpoint. {LOAD_MODEL}",
    "first_stage_model.x": f"It looks like a whole checkpoint. {LOAD_MODEL}",
    "double_blocks.0.weight": f"It looks like the weights of a model. {LOAD_MODEL}",
    "latent": "Choose a file that was saved by SaRA Save.",
}


def refusal(comfy, node_id, **inputs):
    """The message with which a node refuses."""
    with pytest.raises(comfy.pack_module("sara_core.errors").DeltaError) as refused:
        comfy.execute(node_id, **inputs)
    return str(refused.value)


def stored(comfy, kind, tensors, name="foreign.safetensors"):
    folder = comfy.base / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    comfy.folder_paths.filename_list_cache.clear()
    return name


@pytest.mark.parametrize("tensor", SENTENCES)
def test_the_loader_names_the_node_that_takes_a_foreign_file(comfy, tensor):
    name = stored(comfy, "sara", {tensor: torch.zeros(2)})
    said = refusal(comfy, "SaRALoader", sara_name=name, strength=1.0)
    assert said == f"Cannot load '{name}'. It is not a SaRA delta. {SENTENCES[tensor]}"


@pytest.mark.parametrize("node_id", ["SaRALoader", "SaRAConvert"])
def test_a_delta_with_a_lora_beside_is_for_load_lora(comfy, delta, node_id):
    path = comfy.base / "models" / "sara" / "delta.safetensors"
    delta.save(path)
    from safetensors.torch import load_file

    name = stored(comfy, "sara", {**load_file(path), "x.lora_up.weight": torch.zeros(2)}, "mixed.safetensors")
    inputs = {"sara_name": name, "strength": 1.0} if node_id == "SaRALoader" else {"file_name": name}
    assert refusal(comfy, node_id, **inputs) == (
        f"Cannot load '{name}'. Besides the delta it has 1 tensors that are not SaRA's (such as 'x.lora_up.weight'). "
        "Load it with the Load LoRA node, which takes both."
    )


def test_a_lora_without_a_base_is_asked_for_one(comfy):
    name = stored(comfy, "loras", {"a.lora_up.weight": torch.zeros(2, 2), "a.lora_down.weight": torch.zeros(2, 2)})
    assert refusal(comfy, "SaRAConvert", file_name=name, base_name="none") == (
        f"A LoRA or weight difference ('{name}') can only be converted beside the base model that it was made for: "
        "give it, a checkpoint or a diffusers folder, as base_name in SaRA Convert or as --base."
    )


def test_what_is_nothing_known_is_refused_with_what_there_is(comfy):
    name = stored(comfy, "loras", {"latent": torch.zeros(2)})
    assert refusal(comfy, "SaRAConvert", file_name=name, base_name="none") == (
        f"'{name}' is nothing that can be converted: neither a delta or adapter (SaRA, SHiRA, Super-Tuning, LT-SFT, "
        "LoRA, LyCORIS, .diff) nor a model in .safetensors files."
    )


def test_the_description_of_the_node_lists_the_formats(comfy):
    said = comfy.node_class("SaRAConvert").GET_SCHEMA().description
    assert "(the SaRA authors' .pt, SHiRA, Super-Tuning, LT-SFT, LoRA, LyCORIS, .diff, a tuned model)" in said


def test_there_is_a_remedy_for_everything(comfy):
    remedies = comfy.pack_module("nodes.host.remedies").REMEDIES
    assert remedies.keys() == comfy.pack_module("sara_core.conversion.remedies").LIBRARY.keys()
