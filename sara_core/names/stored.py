"""What of a file is the diffusion model, and what its weights are called once they are loaded: files put one of several
prefixes before them, and some families' published files have names that are changed on the way into the model."""

import re
from collections.abc import Collection, Iterable, Mapping

# ComfyUI's models call the diffusion network `diffusion_model`, checkpoint files `model.diffusion_model`,
# and the network on its own (or a diffusion-model file) has no prefix at all.
PREFIX, CHECKPOINT_PREFIX = "diffusion_model.", "model.diffusion_model."
# Flux's original files call a norm's weight so.
NORM_SCALE, NORM_WEIGHT = "_norm.scale", "_norm.weight"

# HunyuanVideo and audio models as ComfyUI saves them, Cosmos and Anima, PixelDiT.
_OTHER_FILES = ("model.model.", "net.", "core.")
# AuraFlow and Hunyuan3D.
_LEFT = "model."
# A pipeline's part that was saved with its name, as its only content.
_PIPELINES = ("transformer.", "unet.")
# So many names are not there by chance.
_SOME = 5

# HunyuanVideo as Tencent published it: (what such a file says, what the loaded model says).
_TENCENT = (
    (r"(txt_in\.t_embedder|(?:time|guidance|vector)_in)\.mlp\.0\.", r"\1.in_layer."),
    (r"(txt_in\.t_embedder|(?:time|guidance|vector)_in)\.mlp\.2\.", r"\1.out_layer."),
    (r"(txt_in\.c_embedder)\.linear_1\.", r"\1.in_layer."),
    (r"(txt_in\.c_embedder)\.linear_2\.", r"\1.out_layer."),
    (r"(_mod|\.modulation)\.linear\.", r"\1.lin."),
    (r"_attn_(qkv|proj)\.", r"_attn.\1."),
    (r"mlp\.fc1\.", "mlp.0."),
    (r"mlp\.fc2\.", "mlp.2."),
    (r"(_attn)_(?=[qk]_norm\.weight)", r"\1."),
    (r"\.q_norm\.weight", ".norm.query_norm.weight"),
    (r"\.k_norm\.weight", ".norm.key_norm.weight"),
)
# What a file has beside its model's weights: marks of how it predicts and is sampled, and of its precision; copies of
# the weights that are averages over a training.
_NO_WEIGHTS = re.compile(r"(v_pred|ztsnr|edm_(mean|std|vpred\..*)|scaled_fp8|((model|net)_)?ema(_model)?\..*)")
_IS_HUNYUAN_VIDEO = "txt_in.individual_token_refiner.blocks.0.norm1.weight"
_SCALE = re.compile(r"\.scale$")
# Whose norms' weights are all called so in files: HunyuanVideo, Chroma and Hunyuan3D.
_HAS_SCALES = (_IS_HUNYUAN_VIDEO, "distilled_guidance_layer.in_proj.weight", "latent_in.weight")


def prefix_in(names: Collection[str]) -> str:
    """What a file, or a loaded model, puts before the names of its diffusion model's weights; empty for nothing."""
    found = {prefix: sum(name.startswith(prefix) for name in names) for prefix in (CHECKPOINT_PREFIX, *_OTHER_FILES)}
    most = max(found, key=lambda prefix: found[prefix])
    if found[most] > _SOME:
        return most
    for prefix in (CHECKPOINT_PREFIX, PREFIX):
        if any(name.startswith(prefix) for name in names):
            return prefix
    if alone := [prefix for prefix in (*_OTHER_FILES, *_PIPELINES) if all(name.startswith(prefix) for name in names)]:
        return alone[0] if names else ""
    return _LEFT if any(name.startswith(_LEFT) for name in names) else ""


def loaded_names(names: Collection[str]) -> dict[str, str]:
    """What the loaded diffusion model calls its weights, without a prefix → their names among these, which are all of a
    file. What is not of the diffusion model (text encoders, VAE …) is left out."""
    prefix = prefix_in(names)
    stored = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    stored = {name: found for name, found in stored.items() if not _NO_WEIGHTS.fullmatch(name)}
    renamings = list(_renamings(stored))
    return {_renamed(name, renamings): found for name, found in stored.items()}


def _renamings(names: Mapping[str, str]) -> Iterable[tuple[re.Pattern[str], str]]:
    if _IS_HUNYUAN_VIDEO in names:
        yield from ((re.compile(theirs), own) for theirs, own in _TENCENT)
    if any(name in names for name in _HAS_SCALES):
        yield _SCALE, ".weight"
    yield re.compile(re.escape(NORM_SCALE) + "$"), NORM_WEIGHT


def _renamed(name: str, renamings: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for theirs, own in renamings:
        name = theirs.sub(own, name)
    return name
