"""AUTOMATIC1111's WebUI as a host that trains, and the model that it has loaded."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from modules import (
    devices, prompt_parser, sd_hijack, sd_hijack_optimizations, sd_models, sd_samplers_common, sd_unet, shared,
)  # fmt: skip

from sara_core.errors import UnsupportedModelError

from .kin import LATENT_CHANNELS, KinTraining, as_written

# Of the host's ways to encode and decode: by the model's whole VAE.
_WHOLE_VAE = 0


class A1111Training(KinTraining):
    """See training/host.py."""

    def refusal(self) -> str | None:
        model = self.host.model()
        if getattr(model, "is_sd3", False):
            return "Stable Diffusion 3 cannot be trained in this WebUI: train it in ComfyUI, or with diffusers."
        if getattr(model, "lowvram", False):
            return (
                "The whole model must be in the graphics card's memory to be trained: start the WebUI without "
                "--medvram and --lowvram."
            )
        if devices.fp8:
            return "Weights in fp8 cannot be trained: set FP8 weight to Disable in the settings, under Optimizations."
        return None

    def loaded_unet(self) -> torch.nn.Module | None:
        model = self.host.model()
        return getattr(getattr(model, "model", None), "diffusion_model", None)

    def _load_what_is_chosen(self) -> None:
        if shared.sd_model is not None:  # asking loads one, if none is
            sd_models.reload_model_weights()  # a picture leaves the checkpoint of its second pass, or a refiner

    @contextmanager
    def _prepared(self) -> Iterator["A1111Model"]:
        model = self.host.model()
        with ExitStack() as undo:
            _check_without_networks(model)
            sd_unet.apply_unet("None")
            sd_hijack.model_hijack.apply_circular(False)
            undo.callback(sd_hijack.model_hijack.apply_optimizations)
            sd_hijack.undo_optimizations()
            # Torch's own attention: the same numbers as without any, in far less memory, and with a gradient.
            sd_hijack_optimizations.SdOptimizationSdp().apply()
            yield A1111Model(model)


class A1111Model:
    """See training/host.py.

    Raises UnsupportedModelError for a model that is told more of a picture than its caption, as for inpainting.
    """

    patch, has_diffusers_names = 8, False

    def __init__(self, model: torch.nn.Module):
        self.model, self.unet = model, model.model.diffusion_model
        self.name = Path(model.sd_checkpoint_info.filename).name
        self.device, self.is_half = devices.device, devices.dtype_unet == torch.float16
        self.signal = model.alphas_cumprod_original.float().cpu()
        self.prediction = "v" if model.parameterization == "v" else "eps"
        self.clip_skip = shared.opts.CLIP_stop_at_last_layers
        first = next(weight for weight in self.unet.parameters() if weight.dim() == 4)
        if first.shape[1] != LATENT_CHANNELS or model.model.conditioning_key != "crossattn":
            raise UnsupportedModelError(
                "This model takes something beside the noise and the caption (a picture, as for inpainting), which "
                "training cannot give it: train the model that it was made from."
            )

    def latent(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        with torch.no_grad(), devices.autocast(), torch.random.fork_rng():
            torch.manual_seed(seed)  # the VAE draws from what it has found, and a resumed run is to find the same
            latent = sd_samplers_common.images_tensor_to_samples(
                pixels.permute(2, 0, 1)[None], _WHOLE_VAE, self.model
            )
        return latent[0].float().cpu()

    def conditions(self, caption: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        given = prompt_parser.SdConditioning([as_written(caption)], width=size[0], height=size[1])
        with torch.no_grad(), devices.autocast():
            told = self.model.get_learned_conditioning(given)
        told = told if isinstance(told, Mapping) else {"crossattn": told}
        return {name: tensor[0].float().cpu() for name, tensor in told.items()}

    def predict(
        self, unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        if not hasattr(self.model, "conditioner"):  # Stable Diffusion 1 and 2
            conditions = {"c_crossattn": [conditions["crossattn"]]}
        return self.model.apply_model(noisy, timesteps, dict(conditions))

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        latent = latent[None].to(devices.dtype_vae)
        decoded = sd_samplers_common.samples_to_images_tensor(latent, _WHOLE_VAE, self.model)
        return (decoded[0].permute(1, 2, 0).float() / 2 + 0.5).clamp(0, 1).cpu()


def _check_without_networks(model: torch.nn.Module) -> None:
    """Undo is lazy in this host, and its settings may add a network to every prompt: Δ would belong elsewhere."""
    if any(getattr(module, "network_current_names", ()) for module in model.modules()) or shared.loaded_hypernetworks:
        raise UnsupportedModelError(
            "A LoRA or hypernetwork is still in the model: set 'Add network to prompt' and 'Add hypernetwork to "
            "prompt' to None in the settings, and draw a picture without any."
        )
