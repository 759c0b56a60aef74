"""Diffusers models as small as they get, with random weights, and whole pipelines."""

import json
import string

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
SDXL = {
    **UNET, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16, "transformer_layers_per_block": 2,
    "use_linear_projection": True,
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
FLUX2 = {
    "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "in_channels": 16,
    "joint_attention_dim": 160, "timestep_guidance_channels": 16, "axes_dims_rope": (8, 8, 8, 8),
}  # fmt: skip
WAN = {
    "num_attention_heads": 2, "attention_head_dim": 32, "text_dim": 32, "ffn_dim": 96, "num_layers": 2, "freq_dim": 16,
}  # fmt: skip
WAN_FROM_PICTURE = {**WAN, "in_channels": 36, "out_channels": 16, "image_dim": 48, "added_kv_proj_dim": 64}
Z_IMAGE = {
    "in_channels": 4, "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": 32, "axes_dims": [8, 12, 12], "axes_lens": [32, 32, 32],
}  # fmt: skip
QWEN_IMAGE = {
    "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
    "joint_attention_dim": 32, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CAPTIONS = ("a red square", "a blue square", "a green square", "a red square")


def unet(seed: int = 0) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**UNET).eval()


def motion_unet(seed: int = 0) -> diffusers.UNetMotionModel:
    """AnimateDiff's: SD1.5's UNet with motion modules beside its layers."""
    torch.manual_seed(seed)
    return diffusers.UNetMotionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=768, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), num_attention_heads=4, motion_num_attention_heads=4,
    )  # fmt: skip


def sdxl(seed: int = 0) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**SDXL).eval()


def sd3(seed: int = 0) -> diffusers.SD3Transformer2DModel:
    torch.manual_seed(seed)
    return diffusers.SD3Transformer2DModel(**SD3).eval()


def flux(seed: int = 0, guidance: bool = True) -> diffusers.FluxTransformer2DModel:
    torch.manual_seed(seed)
    return diffusers.FluxTransformer2DModel(**{**FLUX, "guidance_embeds": guidance}).eval()


def flux2(seed: int = 0) -> diffusers.Flux2Transformer2DModel:
    torch.manual_seed(seed)
    return diffusers.Flux2Transformer2DModel(**FLUX2).eval()


def wan(seed: int = 0) -> diffusers.WanTransformer3DModel:
    torch.manual_seed(seed)
    return diffusers.WanTransformer3DModel(**WAN).eval()


def wan_from_picture(seed: int = 0) -> diffusers.WanTransformer3DModel:
    torch.manual_seed(seed)
    return diffusers.WanTransformer3DModel(**WAN_FROM_PICTURE).eval()


def z_image(seed: int = 0) -> diffusers.ZImageTransformer2DModel:
    """Its two bare parameters have values: diffusers leaves them as the memory was."""
    torch.manual_seed(seed)
    model = diffusers.ZImageTransformer2DModel(**Z_IMAGE).eval()
    for token in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(token)
    return model


def qwen_image(seed: int = 0) -> diffusers.QwenImageTransformer2DModel:
    torch.manual_seed(seed)
    return diffusers.QwenImageTransformer2DModel(**QWEN_IMAGE).eval()


def inputs(model, seed: int = 1) -> dict:
    """A batch of two for one of these models."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randn(2, 5, 32, generator=g)
    if isinstance(model, diffusers.UNet2DConditionModel):
        result = {"sample": torch.randn(2, 4, 8, 8, generator=g), "timestep": torch.tensor([10, 700]),
                  "encoder_hidden_states": text}  # fmt: skip
        if model.config.addition_embed_type:
            sizes = torch.tensor([[32, 40, 0, 4, 32, 32]] * 2)
            result["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 16, generator=g), "time_ids": sizes}
        return result
    pooled = torch.randn(2, 16, generator=g)
    common = {"timestep": torch.tensor([0.2, 0.9]), "encoder_hidden_states": text, "pooled_projections": pooled}
    if isinstance(model, diffusers.SD3Transformer2DModel):
        return {"hidden_states": torch.randn(2, 16, 8, 8, generator=g), **common}
    return {"hidden_states": torch.randn(2, 16, 64, generator=g), "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(5, 3), "guidance": torch.ones(2), **common}  # fmt: skip


def pipeline(folder, prediction: str = "epsilon") -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion pipeline; here and below, `folder` is for its tokenizer's files."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_clip(tokenizer, TEXT_WIDTH), tokenizer=tokenizer, unet=unet(),
        scheduler=diffusers.PNDMScheduler(
            **BETAS, skip_prk_steps=True, prediction_type=prediction, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_pipeline(folder) -> diffusers.StableDiffusionXLPipeline:
    torch.manual_seed(0)
    tokenizer = _tokenizer(folder)
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_clip(tokenizer, 16), tokenizer=tokenizer, tokenizer_2=tokenizer, unet=sdxl(),
        text_encoder_2=_clip(tokenizer, 16, transformers.CLIPTextModelWithProjection),
        scheduler=diffusers.EulerDiscreteScheduler(**BETAS), add_watermarker=False,
    )  # fmt: skip


def sd3_pipeline(folder, with_t5: bool = True) -> diffusers.StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer, t5_tokenizer = _tokenizer(folder), _t5_tokenizer()
    with_projection = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        vae=_vae(16, shift_factor=0.06), transformer=sd3(), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder=_clip(tokenizer, 8, with_projection), text_encoder_2=_clip(tokenizer, 8, with_projection),
        text_encoder_3=_t5(t5_tokenizer) if with_t5 else None, tokenizer_3=t5_tokenizer if with_t5 else None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux_pipeline(folder, guidance: bool = True) -> diffusers.FluxPipeline:
    """FLUX.1-dev with guidance, else FLUX.1-schnell."""
    torch.manual_seed(0)
    tokenizer, t5_tokenizer = _tokenizer(folder), _t5_tokenizer()
    return diffusers.FluxPipeline(
        vae=_vae(16, shift_factor=0.1), transformer=flux(guidance=guidance), text_encoder=_clip(tokenizer, 16),
        tokenizer=tokenizer, text_encoder_2=_t5(t5_tokenizer), tokenizer_2=t5_tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0
        ),
    )  # fmt: skip


def _vae(channels: int, **options) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, **options,
    ).eval()  # fmt: skip


def _clip(tokenizer, width: int, kind=transformers.CLIPTextModel):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        projection_dim=width,
    )  # fmt: skip
    return kind(config).eval()


def _t5(tokenizer) -> transformers.T5EncoderModel:
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return transformers.T5EncoderModel(config).eval()


def _tokenizer(folder):
    words = [
        *string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), "<|startoftext|>",
        "<|endoftext|>",
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def _t5_tokenizer():
    special = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
    return transformers.T5TokenizerFast(
        vocab=[*special, ("▁", -2.0), *((letter, -3.0) for letter in string.ascii_lowercase)], extra_ids=0
    )


def image_folder(folder):
    """Four captioned pictures of several sizes; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, caption in enumerate(CAPTIONS):
        color = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}[caption.split()[1]]
        Image.new("RGB", (40 + 8 * number, 32), color).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption + "\n")
    return folder
