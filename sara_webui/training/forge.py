"""Forge and Forge Neo as hosts that train, and the model that they have loaded.

All their weights are inference tensors, which no graph may keep: what is trained is a copy of the diffusion model's,
put in its place for that time; the host's own are out of the graphics card's memory meanwhile, and are what comes back.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from backend import attention
from backend.nn import unet as unet_module
from modules import prompt_parser, sd_models, sd_samplers_common, shared

from sara_core.errors import TrainingError, UnsupportedModelError

from .kin import LATENT_CHANNELS, KinTraining, as_written

_WHOLE_VAE = 0
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
# Its forward adds into its own input, which gradient checkpointing computes it from again.
_BLOCK = "BasicTransformerBlock"


class ForgeTraining(KinTraining):
    """See training/host.py."""

    def refusal(self) -> str | None:
        model = self.host.model()
        if model is None:
            return None
        if not (model.is_sd1 or model.is_sdxl):
            return (
                "In this WebUI SD1.5 and SDXL can be trained, and models that were made of them: train this one in "
                "ComfyUI, or with diffusers."
            )
        kmodel = model.forge_objects_original.unet.model
        if kmodel.storage_dtype not in _PRECISIONS or kmodel.storage_dtype != kmodel.computation_dtype:
            return (
                f"The model is stored as {_called(kmodel.storage_dtype)} and computes in "
                f"{_called(kmodel.computation_dtype)}: to train it, choose a precision for it that it computes in, too."
            )
        return None

    def loaded_unet(self) -> torch.nn.Module | None:
        model = self.host.model()
        return None if model is None else model.forge_objects_original.unet.model.diffusion_model

    @contextmanager
    def ready(self) -> Iterator["ForgeModel"]:
        with torch.inference_mode():
            sd_models.forge_model_reload()
        if (model := self.host.model()) is None:
            raise TrainingError("No model is loaded: choose a checkpoint first.")
        if reason := self.refusal():
            raise UnsupportedModelError(reason)
        self.host.take_off_everything()
        with ExitStack() as undo:
            unet = model.forge_objects_original.unet
            trained = ForgeModel(model, undo.enter_context(_trainable(unet.model.diffusion_model, unet.load_device)))
            yield trained


class ForgeModel:
    """See training/host.py. model: the host's, whose UNet is `unet` with weights of our own

    Raises UnsupportedModelError for a model that is told more of a picture than its caption, as for inpainting.
    """

    patch = 8

    def __init__(self, model: Any, unet: torch.nn.Module):
        patcher = model.forge_objects_original.unet
        predictor = patcher.model.predictor
        self.model, self.unet, self.name = model, unet, Path(model.sd_checkpoint_info.filename).name
        self.device, self.dtype = patcher.load_device, patcher.model.computation_dtype
        self.is_half = self.dtype == torch.float16
        self.signal = (1 / (1 + predictor.sigmas.square())).float().cpu().clone()
        self.prediction = "v" if predictor.prediction_type == "v_prediction" else "eps"
        self.clip_skip = int(shared.opts.CLIP_stop_at_last_layers)
        first = next(weight for weight in unet.parameters() if weight.dim() == 4)
        if first.shape[1] != LATENT_CHANNELS:
            raise UnsupportedModelError(
                "This model takes something beside the noise and the caption (a picture, as for inpainting), which "
                "training cannot give it: train the model that it was made from."
            )

    def latent(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(seed)  # the VAE draws from what it has found, and a resumed run is to find the same
            latent = sd_samplers_common.images_tensor_to_samples(pixels.permute(2, 0, 1)[None], _WHOLE_VAE, self.model)
        return _own(latent[0])

    def conditions(self, caption: str, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        given = prompt_parser.SdConditioning([as_written(caption)], width=size[0], height=size[1])
        self.model.set_clip_skip(self.clip_skip)
        told = self.model.get_learned_conditioning(given)
        told = told if isinstance(told, Mapping) else {"crossattn": told}
        return {name: _own(tensor[0]) for name, tensor in told.items()}

    def predict(
        self, unet: torch.nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        told = {name: tensor.to(self.dtype) for name, tensor in conditions.items()}
        vector = {"y": told["vector"]} if "vector" in told else {}
        context = told["crossattn"]
        predicted = unet(noisy.to(self.dtype), timesteps.float(), context=context, transformer_options={}, **vector)
        return predicted.float()

    def picture(self, latent: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            decoded = sd_samplers_common.samples_to_images_tensor(latent[None], _WHOLE_VAE, self.model)
        return (_own(decoded[0]).permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def _own(tensor: torch.Tensor) -> torch.Tensor:
    """As fp32 on the CPU, for a graph."""
    return tensor.to("cpu", torch.float32, copy=True)


@contextmanager
def _trainable(unet: torch.nn.Module, device: torch.device) -> Iterator[torch.nn.Module]:
    """The UNet with weights and layers that gradients go through, and afterwards with the host's own again."""
    with ExitStack() as undo:
        undo.callback(setattr, unet_module, "attention_function", unet_module.attention_function)
        unet_module.attention_function = attention.attention_pytorch  # some others have no gradient
        for module in unet.modules():
            for tensors in (module._parameters, module._buffers):
                undo.callback(tensors.update, dict(tensors))
                for name, tensor in tensors.items():
                    tensors[name] = _normal(tensor, device)
            undo.callback(setattr, module, "__class__", type(module))
            module.__class__ = _plain_class(type(module))
            if isinstance(module, torch.nn.LayerNorm):
                undo.callback(module.register_forward_pre_hook(_kept_apart).remove)
        yield unet


@torch.no_grad()
def _normal(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    if tensor is None:
        return None
    copied = tensor.detach().to(device, copy=True)
    return torch.nn.Parameter(copied, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else copied


def _plain_class(kind: type) -> type:
    """torch's own class, of whose weights the host's casts copies in ways of its own; of a block one that keeps its
    input."""
    if kind.__name__ == _BLOCK:
        return _with_its_own_input(kind)
    # By its name: Forge's Linear is no subclass of torch's.
    return getattr(torch.nn, kind.__name__) if kind.__module__.startswith("backend.operations") else kind


def _with_its_own_input(kind: type) -> type:
    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return kind.forward(self, x.clone(), *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward})


def _kept_apart(_: torch.nn.Module, given: tuple) -> tuple:
    """The host adds into what a norm was given, after the norm has kept it for its gradient."""
    return (given[0].clone(), *given[1:])


def _called(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
