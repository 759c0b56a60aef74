"""What both revisions are given: diffusers folders, tuned models, deltas, adapters of every kind, pictures.

    python -m benchmarks.golden_.inputs FOLDER

Made once, by seeds, with the working tree's own library where that has to write a file.
"""

import shutil
import sys
from pathlib import Path

import diffusers
import peft
import torch
from safetensors.torch import save_file

import sara_core
from devtools.checkpoint import demo_checkpoint
from tests.support import tiny_diffusers
from tests.support.adapter_files import boft, dora, glora, locon, loha, lokr, lora, oft, random
from tests.support.foreign_files import checkpoint_file, weights_of

from .records import Records

PIPELINES = {
    "sd": tiny_diffusers.pipeline, "sdxl": tiny_diffusers.sdxl_pipeline, "sd3": tiny_diffusers.sd3_pipeline,
    "flux": tiny_diffusers.flux_pipeline,
}  # fmt: skip
TUNED, TUNED_SHARE = 3, 0.02
THRESHOLD = 0.02
CHECKPOINTS = {"fp32": torch.float32, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}

# Modules of the tiny UNet: rows, columns and kernel of their weights, and names in the styles of several trainers.
LINEAR, LINEAR_MODULE = (128, 32), "time_embedding.linear_1"
CONVOLUTION, CONVOLUTION_MODULE = (64, 32, (3, 3)), "down_blocks.1.resnets.0.conv1"
ALPHA = {".alpha": torch.tensor(2.0)}
OF_LINEAR = {
    "lora": lora(*LINEAR) | ALPHA,
    "lora of peft": lora(*LINEAR, up="lora_B.weight", down="lora_A.weight"),
    "lora of diffusers": lora(*LINEAR, up="lora.up.weight", down="lora.down.weight"),
    "lora in float16": {part: tensor.half() for part, tensor in lora(*LINEAR).items()},
    "loha": loha(*LINEAR) | ALPHA,
    "lokr": lokr(*LINEAR, first=True, second=True) | ALPHA,
    "dora": dora(lora(*LINEAR), *LINEAR),
    "dora by columns": dora(lora(*LINEAR), *LINEAR, by_column=True),
    "glora": glora(*LINEAR) | ALPHA,
    "early glora": glora(*LINEAR, early=True) | ALPHA,
    "oft": oft(LINEAR[0], 8, alpha=1.5),
    "boft": boft(LINEAR[0], 8, 3, alpha=2.0, rescale=(1,)),
    "ia3": {".weight": 0.1 * random(LINEAR[0]), ".on_input": torch.tensor(0)},
    "difference": {".diff": random(*LINEAR), ".diff_b": random(LINEAR[0])},
    "whole weight": {".set_weight": random(*LINEAR)},
}
OF_CONVOLUTION = {
    "locon": lora(*CONVOLUTION) | ALPHA,
    "locon with a core": locon(*CONVOLUTION) | ALPHA,
    "loha with a core": loha(*CONVOLUTION, core=True) | ALPHA,
    "lokr with a core": lokr(*CONVOLUTION, core=True) | ALPHA,
    "dora of a convolution": dora(locon(*CONVOLUTION), *CONVOLUTION),
    "oft of a convolution": oft(CONVOLUTION[0], 16),
    "boft of a convolution": boft(CONVOLUTION[0], 4, 3, alpha=0.0),
    "glora of a convolution": glora(*CONVOLUTION),
}
# Of the demo's second layer of the time embedding.
OF_THE_DEMO = {"lora": lora(1280, 1280), "dora": dora(lora(1280, 1280), 1280, 1280)}
PEFT_LAYERS = ["to_q", "ff.net.2", "time_emb_proj"]
OF_PEFT = {
    "shira": peft.ShiraConfig(r=2, target_modules=PEFT_LAYERS, init_weights=False, random_seed=1),
    "super-tuning": peft.SupertuningConfig(sparsity=0.95, target_modules=PEFT_LAYERS, init_weights=False),
    "super-tuning hybrid": peft.SupertuningConfig(
        sparsity=0.95, target_modules=PEFT_LAYERS, init_weights=False, r=2, lora_alpha=3
    ),
    "peft lora": peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=[*PEFT_LAYERS, "conv1"], init_lora_weights=False, use_rslora=True,
        rank_pattern={"to_q": 2}, alpha_pattern={"ff.net.2": 3},
    ),
    "peft dora": peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=PEFT_LAYERS, init_lora_weights=False, use_dora=True
    ),
    "peft loha": peft.LoHaConfig(r=4, alpha=6, target_modules=PEFT_LAYERS, init_weights=False),
    "peft lokr": peft.LoKrConfig(r=4, alpha=6, target_modules=PEFT_LAYERS, init_weights=False),
}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    _models(folder)
    tiny_diffusers.image_folder(folder / "images")
    _deltas(folder)
    _adapters(folder / "adapters")
    _comfyui(folder / "comfyui")


def _models(folder: Path) -> None:
    """Pipelines, a batch for each one's diffusion model, and SD's tuned in several ways."""
    for family, make in PIPELINES.items():
        pipeline = make(folder / "tokenizer")
        shutil.rmtree(folder / "tokenizer")
        pipeline.save_pretrained(folder / "models" / family)
        model = getattr(pipeline, "unet", None) or pipeline.transformer
        Records(folder / "batches").value(family, tiny_diffusers.inputs(model))
    for number in range(TUNED):
        _tuned(number).save_pretrained(folder / "tuned" / str(number) / "unet")
    (folder / "checkpoints").mkdir()
    for name, dtype in CHECKPOINTS.items():
        checkpoint_file(folder / "checkpoints" / f"{name}.safetensors", weights_of(folder / "models/sd"), dtype)


def _tuned(seed: int) -> diffusers.UNet2DConditionModel:
    model, generator = tiny_diffusers.unet(), torch.Generator().manual_seed(100 + seed)
    for parameter in model.parameters():
        chosen = torch.rand(parameter.shape, generator=generator) < TUNED_SHARE
        parameter.data[chosen] *= 1.5
    return model


def _deltas(folder: Path) -> None:
    (folder / "deltas").mkdir()
    for number in range(TUNED):
        delta = sara_core.extract(folder / "models/sd", folder / "tuned" / str(number), density=0.01)
        delta.save(folder / "deltas" / f"{number}.safetensors")


def _adapters(folder: Path) -> None:
    folder.mkdir()
    for module, kinds in ((LINEAR_MODULE, OF_LINEAR), (CONVOLUTION_MODULE, OF_CONVOLUTION)):
        for kind, tensors in kinds.items():
            # As kohya's trainers write names, and as others do.
            flat = f"lora_unet_{module.replace('.', '_')}"
            name = f"unet.{module}" if "of peft" in kind or "of diffusers" in kind else flat
            save_file({name + part: tensor.contiguous() for part, tensor in tensors.items()},
                      folder / f"{kind}.safetensors")  # fmt: skip
    for kind, config in OF_PEFT.items():
        torch.manual_seed(3)
        peft.get_peft_model(tiny_diffusers.unet(), config).save_pretrained(folder / kind)
    _torch_files(folder)


def _torch_files(folder: Path) -> None:
    """What the SaRA authors' optimizer and composable-sft save."""
    base, tuned = tiny_diffusers.unet(), _tuned(0)
    final, diffs = {"threshold": THRESHOLD}, {}
    pairs = zip(base.named_parameters(), tuned.parameters())
    for number, ((name, before), after) in enumerate(pairs):
        before, after = before.detach(), after.detach()
        final[number] = after[before.abs() < THRESHOLD]
        diffs[name] = _lt_sft(after - before)
    torch.save(final, folder / "authors.pt")
    torch.save({"diffs": diffs, "abs": {}}, folder / "lt-sft.bin")
    whole = "conv_out.weight"
    rest = {name: diff for name, diff in diffs.items() if name != whole}
    torch.save({"diffs": rest, "abs": {whole: tuned.get_parameter(whole).detach()}}, folder / "lt-sft, whole.bin")


def _lt_sft(change: torch.Tensor) -> dict:
    """One parameter's change as gaps between positions that count the first side fastest."""
    turned = change.permute(*reversed(range(change.dim()))).reshape(-1)
    positions = turned.nonzero().view(-1)
    steps = positions.diff(prepend=torch.zeros(1, dtype=torch.int64))
    return {"size": change.shape, "index_steps": steps.tolist(), "values": turned[positions]}


def _comfyui(folder: Path) -> None:
    """The demo's checkpoint, LoRAs for it, and pictures."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "loras").mkdir()
    shutil.copyfile(demo_checkpoint(), folder / "checkpoints/base.safetensors")
    for kind, tensors in OF_THE_DEMO.items():
        named = {f"diffusion_model.time_embed.2{part}": tensor for part, tensor in tensors.items()}
        save_file(named, folder / "loras" / f"{kind}.safetensors")
    pictures = {str(number): random(1, 64, 64, 3, seed=number).sigmoid() for number in range(3)}
    save_file(pictures, folder / "pictures.safetensors")


if __name__ == "__main__":
    main()
