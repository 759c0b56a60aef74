"""What models call their first layer, into which latents go."""

from .stored import prefix_in

# ComfyUI's names and diffusers': UNets, Flux (and many others), Wan, SD3, HunyuanVideo, Cosmos, LTX-Video, CogVideoX.
_FIRST = frozenset(
    f"{module}.weight"
    for module in (
        "input_blocks.0.0", "conv_in", "img_in", "x_embedder", "patch_embedding", "x_embedder.proj", "pos_embed.proj",
        "img_in.proj", "x_embedder.proj.1", "patch_embed.proj.1", "patchify_proj", "proj_in", "patch_embed.proj",
        "visual_embeddings.in_layer",
    )
)  # fmt: skip


def is_first_layer(name: str) -> bool:
    """Whether this is the weight of a model's first layer. name: with any prefix, or without one"""
    return name in _FIRST or name.removeprefix(prefix_in([name])) in _FIRST
