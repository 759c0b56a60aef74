"""SD.Next as a host that trains, and the pipeline of diffusers that it has loaded."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from modules import devices, modeldata, paths, sd_models, shared
from modules.lora import lora_common

from sara_core.errors import UnsupportedModelError
from sara_core.pipelines.families import FAMILIES
from sara_core.pipelines.prepare import diffusion_noising

from .kin import LATENT_CHANNELS, KinTraining
from .own_weights import own, own_weights

# What the host calls the kinds of pipelines → what diffusers does.
_FAMILIES = {"sd": FAMILIES["StableDiffusionPipeline"], "sdxl": FAMILIES["StableDiffusionXLPipeline"]}
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
_PASSING_WEIGHTS = ("sequential", "group")
_FREE_U = ("s1", "s2", "b1", "b2")


class SDNextTraining(KinTraining):
    """See training/host.py."""

    def refusal(self) -> str | None:
        pipeline, unet = self.host.model(), self.loaded_unet()
        if modeldata.get_model_type(pipeline) not in _FAMILIES or unet is None:
            return (
                "In this WebUI SD1.5 and SDXL can be trained, and models that were made of them: train this one in "
                "ComfyUI, or with diffusers."
            )
        mode = shared.opts.diffusers_offload_mode
        if mode in _PASSING_WEIGHTS:
            return (
                f"With Model offload mode {mode} the weights only pass through the memory that trains: set it to "
                "balanced, model or none, and load the model anew."
            )
        return _in_the_way(unet)

    def loaded_unet(self) -> torch.nn.Module | None:
        unet = getattr(self.host.model(), "unet", None)
        return unet if isinstance(getattr(unet, "_orig_mod", unet), diffusers.UNet2DConditionModel) else None

    def _load_what_is_chosen(self) -> None:
        """The host does so as soon as it is chosen."""

    @contextmanager
    def _prepared(self) -> Iterator["SDNextModel"]:
        pipeline = self.host.model()
        if lora_common.previously_loaded_networks or getattr(pipeline.unet, "peft_config", None):
            raise UnsupportedModelError(
                "A LoRA is still in the model: draw a picture without any, or load the model anew."
            )
        with ExitStack() as undo:
            # Without force the host takes a model that it has once seen for one that still has its hooks.
            undo.callback(sd_models.set_diffuser_offload, pipeline, op="model", quiet=True, force=True)
            sd_models.disable_offload(pipeline)
            sd_models.move_model(pipeline, devices.device, force=True)
            undo.enter_context(_plain(pipeline.unet))
            undo.enter_context(devices.bypass_sdpa_hijacks())
            yield SDNextModel(pipeline)

    def _outputs(self) -> Path:
        return Path(paths.data_path, "outputs")


class SDNextModel:
    """See training/host.py. pipeline: of diffusers, in memory and without hooks

    Raises UnsupportedModelError for a model that is told more of a picture than its caption, as for inpainting.
    """

    clip_skip, has_diffusers_names = 1, True

    def __init__(self, pipeline: Any):
        self.pipeline, self.unet, self.vae = pipeline, pipeline.unet, pipeline.vae
        self.family = _FAMILIES[modeldata.get_model_type(pipeline)]
        if self.unet.config.in_channels != LATENT_CHANNELS or self.vae.config.latent_channels != LATENT_CHANNELS:
            raise UnsupportedModelError(
                "This model takes something beside the noise and the caption (a picture, as for inpainting), which "
                "training cannot give it: train the model that it was made from."
            )
        self.family.check(pipeline)
        self.name = Path(modeldata.model_data.sd_model.sd_checkpoint_info.filename).name
        first = next(self.unet.parameters())
        self.device, self.dtype, self.is_half = first.device, first.dtype, first.dtype == torch.float16
        # For each picture the host puts another one in its place, of the sampler that was chosen.
        noising = diffusion_noising(getattr(pipeline, "default_scheduler", None) or pipeline.scheduler)
        self.signal, self.prediction = own(noising.signal), noising.prediction
        self.patch = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        # Laid out as diffusers lays pictures out, by which its VAE rounds.
        given = (pixels[None] * 2 - 1).permute(0, 3, 1, 2)
        with self._precise_vae() as dtype, devices.inference_context():
            found = _hosts_own(self.vae, "encode")(given.to(self.device, dtype)).latent_dist.mode()[0]
        return own(found) * self.vae.config.scaling_factor

    def conditions(self, caption: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        plain = SimpleNamespace(encode_prompt=_hosts_own(self.pipeline, "encode_prompt"))
        with devices.inference_context():
            told = self.family.text(plain, caption, self.device)
        return {name: own(tensor) for name, tensor in told.items()} | dict(self.family.size(size, size))

    def predict(
        self, unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        told = {name: self._as_input(tensor) for name, tensor in conditions.items()}
        return self.family.predict(unet, self._as_input(noisy), timesteps, told).float()

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        with self._precise_vae() as dtype, devices.inference_context():
            given = (latent[None] / self.vae.config.scaling_factor).to(self.device, dtype)
            decoded = _hosts_own(self.vae, "decode")(given).sample[0]
        return (own(decoded).permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)

    def _as_input(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    @contextmanager
    def _precise_vae(self) -> Iterator[torch.dtype]:
        """The VAE in fp32, where it is one that makes values in fp16 that are no numbers; which dtype it has."""
        before = next(self.vae.parameters()).dtype
        is_too_narrow = before == torch.float16 and getattr(self.vae.config, "force_upcast", False)
        if not is_too_narrow:
            yield before
            return
        self.vae.to(torch.float32)
        try:
            yield torch.float32
        finally:
            self.vae.to(before)  # fp16 in fp32 is exact


def _in_the_way(unet: torch.nn.Module) -> str | None:
    if getattr(unet, "_compiled_call_impl", None) is not None or hasattr(unet, "_orig_mod"):
        return "A compiled model cannot be trained: switch Model compile off, and load the model anew."
    if any(getattr(module, "fused_projections", False) for module in unet.modules()):
        return "Fused projections cannot be trained: switch them off in the settings, and load the model anew."
    if getattr(unet, "encoder_hid_proj", None) is not None:
        return "An IP adapter is in the model: draw a picture without it, with unloading on."
    if kinds := {parameter.dtype for parameter in unet.parameters()} - {*_PRECISIONS}:
        named = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"The model is stored as {named}: to train it, load it without quantization, in fp16, bf16 or fp32."
    return None


@contextmanager
def _plain(unet: torch.nn.Module) -> Iterator[None]:
    """The UNet in memory that may be written, with diffusers' own attention and nothing that changes its features."""
    with ExitStack() as undo:
        if any(weight.is_meta for weight in unet.parameters()):
            raise UnsupportedModelError(
                "The model does not fit into memory as a whole: close what else uses it, or choose a smaller model."
            )
        undo.callback(unet.set_attn_processor, dict(unet.attn_processors))
        unet.set_attn_processor(AttnProcessor2_0())  # some of the host's have no gradient
        for block in getattr(unet, "up_blocks", ()):
            for name in _FREE_U:
                if (factor := getattr(block, name, None)) is not None:
                    undo.callback(setattr, block, name, factor)
                    setattr(block, name, None)
        is_inference = any(weight.is_inference() for weight in unet.parameters())
        undo.enter_context(own_weights(unet, next(unet.parameters()).device) if is_inference else nullcontext())
        yield


def _hosts_own(part: Any, name: str):
    """A method of diffusers', before the host has put one of its own there, which hides errors and moves models."""
    return getattr(part, f"orig_{name}", None) or getattr(part, name)
