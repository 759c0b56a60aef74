"""What InvokeAI makes of LoRA files: it says which family each is for, and puts each on a model.

    python -m benchmarks.readers_.in_invokeai JOBS.json      in an environment with InvokeAI

JOBS.json: a list of {family, model (a diffusers folder), comfyui (weights by ComfyUI's names), text (text encoder →
transformers' folder of it), lora, recognised (a file with the LoRA's names and widths as those of the family's real
models), to}. Of each job, `to` and `to`.json are written (cases.read_changes).
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BASES = {
    "SD1.5": "sd-1", "SDXL": "sdxl", "Flux": "flux", "Flux.2": "flux2", "Wan 2.1": "wan", "Z-Image": "z-image",
    "Qwen-Image": "qwen-image",
}  # fmt: skip
# What it puts before the names of a text encoder's layers: compel.py, flux_text_encoder.py of its invocations.
TEXT = {
    "SD1.5": {"clip_l": "lora_te_"},
    "SDXL": {"clip_l": "lora_te1_", "clip_g": "lora_te2_"},
    "Flux": {"clip_l": "lora_clip-", "t5xxl": "lora_t5-"},
}


def main() -> int:
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        to, said = Path(job["to"]), {}
        try:
            base = recognised(Path(job["recognised"]))
            if base != BASES[job["family"]]:
                raise ValueError(f"taken for {base}")
            save_file(changes_in(job), to)
        except Exception as error:  # whatever a reader raises is its answer
            said = {"error": f"{type(error).__name__}: {error}"[:300]}
        to.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
    return 0


def recognised(path: Path) -> str:
    """Which base model InvokeAI says that the file is for, when it is installed."""
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory

    config = ModelConfigFactory.from_model_on_disk(path, hash_algo="random").config
    if config is None or config.type.value != "lora":
        raise ValueError(f"not recognised as a LoRA: {config and config.type}")
    return config.base.value


def changes_in(job: dict) -> dict[str, torch.Tensor]:
    """Name → change, of each parameter that the LoRA changes while InvokeAI's patcher has it on the models."""
    lora = _loaded(job)
    changes = {_own(name): change for name, change in _patched(lora, *_model(job)).items()}
    for encoder, folder in job["text"].items():
        changed = _patched(lora, _text_encoder(folder), TEXT[job["family"]][encoder])
        changes |= {f"text_encoders.{encoder}.transformer.{name}": change for name, change in changed.items()}
    return changes


def _patched(lora, model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    from invokeai.backend.patches.layer_patcher import LayerPatcher

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with LayerPatcher.apply_smart_model_patches(
        model=model, patches=[(lora, 1.0)], prefix=prefix, dtype=torch.float32, force_direct_patching=True
    ):
        after = {name: weight.clone() for name, weight in model.state_dict().items()}
    return {name: after[name] - old for name, old in before.items() if not torch.equal(after[name], old)}


def _own(name: str) -> str:
    # Its Flux has the names of the original files.
    return name.replace("_norm.scale", "_norm.weight")


def _loaded(job: dict):
    """The LoRA as InvokeAI's own loader makes it of the file."""
    from invokeai.backend.model_manager.load.model_loaders.lora import LoRALoader
    from invokeai.backend.model_manager.taxonomy import BaseModelType, ModelFormat

    loader = LoRALoader.__new__(LoRALoader)
    loader._model_base, loader._torch_dtype = BaseModelType(BASES[job["family"]]), torch.float32
    config = type("Config", (), {"path": job["lora"], "format": ModelFormat.LyCORIS, "base": loader._model_base})
    return loader._load_model(config)


def _model(job: dict):
    """The model, in the class that InvokeAI has for the family and with its layers, and what it puts before names."""
    import diffusers
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast.torch_module_autocast import (
        apply_custom_layers_to_model,
    )

    if job["family"] == "Flux":
        model = _flux(load_file(job["comfyui"]))
    else:
        kind = json.loads(Path(job["model"], "config.json").read_text(encoding="utf-8"))["_class_name"]
        model = getattr(diffusers, kind).from_pretrained(job["model"])
    model = model.to(torch.float32).eval()
    apply_custom_layers_to_model(model)
    return model, "lora_unet_" if job["family"] in ("SD1.5", "SDXL") else "lora_transformer-"


def _text_encoder(folder: str) -> torch.nn.Module:
    import transformers
    from invokeai.backend.model_manager.load.model_cache.torch_module_autocast.torch_module_autocast import (
        apply_custom_layers_to_model,
    )

    (kind,) = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["architectures"]
    model = getattr(transformers, kind).from_pretrained(folder).to(torch.float32).eval()
    if kind.startswith("CLIP") and not hasattr(model, "text_model"):
        # InvokeAI requires transformers 5.5, whose CLIP has its layers there; that of the environment below is younger.
        inner, model = model, torch.nn.Module()
        model.text_model = inner
    apply_custom_layers_to_model(model)
    return model


def _flux(weights: dict[str, torch.Tensor]):
    from invokeai.backend.flux.model import Flux, FluxParams

    def blocks(kind: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(f"{kind}_blocks.")})

    width, channels = weights["img_in.weight"].shape
    model = Flux(
        FluxParams(
            in_channels=channels, vec_in_dim=weights["vector_in.in_layer.weight"].shape[1],
            context_in_dim=weights["txt_in.weight"].shape[1], hidden_size=width, mlp_ratio=4.0,
            num_heads=width // weights["double_blocks.0.img_attn.norm.query_norm.weight"].shape[0],
            depth=blocks("double"), depth_single_blocks=blocks("single"), axes_dim=[16, 24, 24], theta=10_000,
            qkv_bias=True, guidance_embed=True,
        )
    )  # fmt: skip
    model.load_state_dict({name.replace("_norm.weight", "_norm.scale"): weight for name, weight in weights.items()})
    return model


if __name__ == "__main__":
    sys.exit(main())
