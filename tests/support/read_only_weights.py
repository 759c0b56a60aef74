"""Run by tests/nodes/training/test_isolation.py in its own process: trains a MODEL whose weights are mapped read-only.

They are mapped from a file as the host's dynamic VRAM maps them. With `write` as the second argument it writes one
such weight instead, which ends the process: the proof that the weights really are read-only.
"""

import sys
import warnings
from pathlib import Path

folder, action = Path(sys.argv[1]), sys.argv[2]
repository = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(repository), str(repository / "tests")]
warnings.simplefilter("ignore")

from devtools.comfyui.in_process import InProcessHost  # noqa: E402
from devtools.comfyui.install import prepare  # noqa: E402

host = InProcessHost(prepare(), folder)

import comfy.utils  # noqa: E402
import comfy_aimdo.control  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import toy_models  # noqa: E402

comfy_aimdo.control.init()
weights = toy_models.sd15_unet_state_dict()
safetensors.torch.save_file(weights, folder / "unet.safetensors")
mapped, _ = comfy.utils.load_safetensors(str(folder / "unet.safetensors"))
with torch.inference_mode():
    model = toy_models.sd15_model()
    model.model.diffusion_model.load_state_dict(mapped, assign=True)

if action == "write":
    with torch.inference_mode():
        model.model.diffusion_model.input_blocks[0][0].weight.view(-1)[0] = 1.0

delta, _ = host.execute(
    "SaRATrain", model=model, latents=[{"samples": torch.randn(1, 4, 8, 8)}],
    positive=[[[torch.randn(1, 77, 768), {}]]], steps=2, learning_rate=1e-3,
).outputs
assert delta.nnz and all((entry.values != 0).any() for entry in delta.entries.values())
now = model.model.diffusion_model.state_dict()
assert all(torch.equal(now[name], weight) for name, weight in weights.items())
print("trained")
