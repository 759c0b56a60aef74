"""A loader of GGUF files: ComfyUI-GGUF itself where SARA_GGUF_PACK names its folder, else a small one of that protocol.

The protocol is what our code relies on: tensors with `tensor_type`, `tensor_shape` and `patches`, layers whose
`get_weight` dequantises and then applies these patches, and a patcher that hangs patches on tensors.
"""

import importlib.util
import os
import sys
from pathlib import Path

import gguf
import torch

PACK_SWITCH = "SARA_GGUF_PACK"
_UNQUANTISED = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)


def load(path: Path):
    """A MODEL from a GGUF file of a diffusion model."""
    folder = os.environ.get(PACK_SWITCH)
    return _load_by_the_pack(Path(folder), path) if folder else _load_by_the_stand_in(path)


def _load_by_the_pack(folder: Path, path: Path):
    import folder_paths

    if "sara_tests_gguf" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "sara_tests_gguf", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules["sara_tests_gguf"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    # First of all folders: others have files of the same name.
    folder_paths.add_model_folder_path("diffusion_models", str(path.parent), is_default=True)
    loader = sys.modules["sara_tests_gguf"].NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]
    return loader().load_unet(path.name)[0]


class PackedTensor(torch.Tensor):
    """Packed bytes, under the shape that the weight has when it is dequantised."""

    @classmethod
    def of(cls, packed: torch.Tensor, tensor_type, tensor_shape, patches=()) -> "PackedTensor":
        made = packed.detach().as_subclass(cls)
        made.tensor_type, made.tensor_shape, made.patches = tensor_type, torch.Size(tensor_shape), list(patches)
        return made

    @property
    def shape(self):
        return getattr(self, "tensor_shape", self.size())

    def to(self, *args, **options):
        moved = torch.Tensor.to(self.as_subclass(torch.Tensor), *args, **options)
        return PackedTensor.of(moved, self.tensor_type, self.tensor_shape, self.patches)

    def clone(self, *args, **options):
        return self

    def detach(self):
        return self


def is_packed(tensor) -> bool:
    return isinstance(tensor, PackedTensor) and tensor.tensor_type not in _UNQUANTISED


def unpacked(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A dequantised copy."""
    plain = tensor.as_subclass(torch.Tensor)
    if not is_packed(tensor):
        return plain.to(dtype, copy=True)
    values = gguf.quants.dequantize(plain.numpy(), tensor.tensor_type)
    return torch.from_numpy(values).reshape(tensor.shape).to(dtype)


def _operations():
    import comfy.lora
    import comfy.ops

    class Linear(comfy.ops.manual_cast.Linear):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = in_features, out_features
            self.weight = self.bias = None

        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            for name in ("weight", "bias"):
                if prefix + name in state_dict:
                    setattr(self, name, torch.nn.Parameter(state_dict[prefix + name], requires_grad=False))

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            for name in ("weight", "bias"):
                if (tensor := getattr(self, name)) is not None:
                    destination[prefix + name] = torch.empty(tensor.size(), device="meta")

        def is_ggml_quantized(self):
            return is_packed(self.weight) or is_packed(self.bias)

        def get_weight(self, tensor, dtype):
            if tensor is None:
                return None
            weight = unpacked(tensor, dtype)
            for patches, key in getattr(tensor, "patches", []):
                weight = comfy.lora.calculate_weight(patches, weight, key)
            return weight

        def cast_bias_weight(self, input=None, dtype=None, device=None, bias_dtype=None):
            dtype = dtype or input.dtype
            return self.get_weight(self.weight, dtype), self.get_weight(self.bias, bias_dtype or dtype)

        def forward_comfy_cast_weights(self, input, *args, **options):
            return torch.nn.functional.linear(input, *self.cast_bias_weight(input))

    return type("Operations", (comfy.ops.manual_cast,), {"Linear": Linear})


def _patcher_class():
    import comfy.model_patcher
    import comfy.utils

    class Patcher(comfy.model_patcher.ModelPatcher):
        def patch_weight_to_device(self, key, device_to=None, inplace_update=False):
            weight = comfy.utils.get_attr(self.model, key)
            if key in self.patches and is_packed(weight):
                weight.patches = [(self.patches[key], key)]
            elif key in self.patches:
                super().patch_weight_to_device(key, device_to, inplace_update)

        def unpatch_model(self, device_to=None, unpatch_weights=True):
            for parameter in self.model.parameters() if unpatch_weights else ():
                if is_packed(parameter):
                    parameter.patches = []
            return super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)

        def load(self, *args, force_patch_weights=False, **options):
            super().load(*args, force_patch_weights=True, **options)

        def clone(self, *args, **options):
            made = super().clone(*args, **options)
            made.__class__ = Patcher
            return made

    return Patcher


def _load_by_the_stand_in(path: Path):
    import comfy.sd

    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        packed = torch.from_numpy(tensor.data.copy())
        plain = tensor.tensor_type in _UNQUANTISED
        weights[tensor.name] = packed.view(shape) if plain else PackedTensor.of(packed, tensor.tensor_type, shape)
    model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"custom_operations": _operations()})
    model.__class__ = _patcher_class()
    return model
