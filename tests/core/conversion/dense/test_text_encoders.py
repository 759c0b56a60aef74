"""What a LoRA for each program has of text encoders: their layers under the program's names, the others left out."""

import pytest
import torch
from safetensors.torch import load_file

from sara_core import SparseDelta, SparseEntry
from sara_core.conversion.write import write_delta

UNET = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k"
CLIP = "text_encoders.{}.transformer.text_model.encoder.layers.0.mlp.fc1"
T5 = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
FLAT = "text_model_encoder_layers_0_mlp_fc1"


def entry(rows=8, columns=2048):
    return SparseEntry(torch.tensor([1, 9], dtype=torch.int32), torch.tensor([0.5, -1.0]), (rows, columns))


@pytest.mark.parametrize("reader, first, second", [
    ("kohya", f"lora_te1_{FLAT}.lora_up", f"lora_te2_{FLAT}.lora_up"),
    ("invokeai", f"lora_te1_{FLAT}.lora_up", f"lora_te2_{FLAT}.lora_up"),
    ("diffusers", "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B",
     "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B"),
    ("comfyui", CLIP.format("clip_l") + ".lora_up", CLIP.format("clip_g") + ".lora_up"),
])  # fmt: skip
def test_each_program_gets_the_names_it_looks_for(tmp_path, reader, first, second):
    names = [UNET, CLIP.format("clip_l"), CLIP.format("clip_g"), T5]
    delta = SparseDelta({f"{name}.weight": entry() for name in names}, {"sara.family": "SDXL"})
    report = write_delta(delta, tmp_path / "x.safetensors", "lora", rank=2, reader=reader)
    written = load_file(tmp_path / "x.safetensors")
    factors = [name for name in written if name.endswith((".lora_up.weight", ".lora_B.weight"))]
    assert {f"{first}.weight", f"{second}.weight"} <= set(factors)
    assert len(factors) == (4 if reader == "comfyui" else 3)
    assert ("Left out" in report and "t5xxl" in report.split("Left out")[1]) == (reader != "comfyui")


def test_of_t5s_attention_kohya_gets_the_layers_and_not_the_table_of_biases(tmp_path):
    names = [T5, T5[:-1] + "o", T5[:-1] + "relative_attention_bias"]
    delta = SparseDelta({f"{name}.weight": entry() for name in names}, {"sara.family": "Flux"})
    report = write_delta(delta, tmp_path / "x.safetensors", "lora", rank=2, reader="kohya")
    written = {name.partition(".")[0] for name in load_file(tmp_path / "x.safetensors")}
    assert written == {f"lora_te3_encoder_block_0_layer_0_SelfAttention_{row}" for row in "qo"}
    assert "LoRAs of these layers are not taken by kohya" in report and "relative_attention_bias" in report


def test_shira_holds_one_model_and_says_so(tmp_path):
    delta = SparseDelta({f"{UNET}.weight": entry(), f"{T5}.weight": entry()})
    report = write_delta(delta, tmp_path / "folder", "shira")
    assert "Left out, because such a file is of one model: 1 parameter of T5-XXL." in report
