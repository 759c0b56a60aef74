"""What stands before a module's name in a file because its model was wrapped: by PEFT, torch.compile and
DistributedDataParallel, one within the other in whatever order."""

import re

_WRAPPERS = r"base_model\.model|_orig_mod|module"
_WRAPPED = re.compile(rf"(({_WRAPPERS})\.)*")
_WRAPPED_MODEL = re.compile(rf"(({_WRAPPERS}|model|net|diffusion_model|unet|transformer)\.)*")


def without_wrapping(module: str) -> str:
    """The name without what wraps the model that the module is in."""
    return module[_WRAPPED.match(module).end() :]


def without_prefix(module: str) -> str:
    """The same without what a diffusion model itself is called, too."""
    return module[_WRAPPED_MODEL.match(module).end() :]
