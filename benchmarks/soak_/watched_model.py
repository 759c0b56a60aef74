"""Whether the MODEL that everybody shares is still the one that was loaded: its bits in memory, and what it draws."""

import hashlib
import io

from PIL import Image

from devtools.comfyui.client import Client

_CLASS = "SoakModelDigest"
# A node of the soak's own, which ComfyUI loads. It runs each time, and so does all that hangs on it.
NODE = f'''"""The digest of a MODEL's weights as they lie in memory."""

import hashlib

import comfy.model_management
import torch


class {_CLASS}:
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = ("MODEL",), "digest", True, "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"model": ("MODEL",)}}}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")

    def digest(self, model):
        comfy.model_management.load_models_gpu([model])
        digest = hashlib.sha256()
        for name, tensor in sorted(model.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {{"ui": {{"text": [digest.hexdigest()]}}, "result": (model,)}}


NODE_CLASS_MAPPINGS = {{"{_CLASS}": {_CLASS}}}
'''


def watching(checkpoint: str) -> dict:
    """The prompt: the digest of the weights, and a picture by a fixed seed, without any delta."""
    sampling = {"seed": 7, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    linked = {"model": ["digest", 0], "positive": ["text", 0], "negative": ["text", 0], "latent_image": ["empty", 0]}
    return {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "digest": {"class_type": _CLASS, "inputs": {"model": ["model", 0]}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": "a handwritten digit three"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "draw": {"class_type": "KSampler", "inputs": {**sampling, **linked}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["draw", 0], "vae": ["model", 2]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }


def digests(client: Client, outputs: dict) -> dict[str, str]:
    """What the prompt gave: the digest of the weights, and that of the picture's pixels."""
    picture = Image.open(io.BytesIO(client.view(outputs["show"]["images"][0])))
    return {
        "the weights in memory": outputs["digest"]["text"][0],
        "the picture without a delta": hashlib.sha256(picture.tobytes()).hexdigest(),
    }
