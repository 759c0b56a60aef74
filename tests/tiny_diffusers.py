"""Diffusers models as small as they get, with random weights, and whole pipelines in folders."""

import json

import diffusers
import torch
import transformers
from PIL import Image

TEXT_WIDTH = 32
UNET = {
    "block_out_channels": (32, 64), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1, "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
}  # fmt: skip
SD3 = {
    "num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 128,
    "pooled_projection_dim": 16, "pos_embed_max_size": 8, "sample_size": 8, "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}  # fmt: skip
FLUX = {
    "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64,
    "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (16, 24, 24), "guidance_embeds": True,
}  # fmt: skip
CAPTIONS = ("a red square", "a blue square", "a green square", "a red square")


def unet(seed: int = 0) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**UNET).eval()


def sd3(seed: int = 0) -> diffusers.SD3Transformer2DModel:
    torch.manual_seed(seed)
    return diffusers.SD3Transformer2DModel(**SD3).eval()


def flux(seed: int = 0) -> diffusers.FluxTransformer2DModel:
    torch.manual_seed(seed)
    return diffusers.FluxTransformer2DModel(**FLUX).eval()


def inputs(model, seed: int = 1) -> dict:
    """A batch of two for one of these models."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 5, 32, generator=g)
    if isinstance(model, diffusers.UNet2DConditionModel):
        return {"sample": torch.randn(2, 4, 8, 8, generator=g), "timestep": torch.tensor([10, 700]),
                "encoder_hidden_states": text}  # fmt: skip
    pooled = torch.randn(2, 16, generator=g)
    common = {"timestep": torch.tensor([0.2, 0.9]), "encoder_hidden_states": text, "pooled_projections": pooled}
    if isinstance(model, diffusers.SD3Transformer2DModel):
        return {"hidden_states": torch.randn(2, 16, 8, 8, generator=g), **common}
    return {"hidden_states": torch.randn(2, 16, 64, generator=g), "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3), "guidance": torch.ones(2), **common}  # fmt: skip


def pipeline(folder, prediction: str = "epsilon") -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion pipeline; `folder` is for its tokenizer's files."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    tokenizer = _tokenizer(folder)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text).eval(), tokenizer=tokenizer, unet=unet(),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
            prediction_type=prediction, steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _tokenizer(folder):
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def image_folder(folder):
    """Four captioned pictures of several sizes; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(CAPTIONS):
        color = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}[caption.split()[1]]
        Image.new("RGB", (40 + 8 * number, 32), color).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n")
    return folder
