"""Parameters to which ComfyUI never applies the patches that it takes for them.

It patches a module's parameters when it loads the module, and it loads those alone that have no module with parameters
inside (ModelPatcher._load_list). Wan's `blocks.N.modulation` stands beside such modules.
"""

from collections.abc import Iterable


def never_patched(model, keys: Iterable[str]) -> list[str]:
    """Those of a MODEL's parameters, by their keys, whose patches are not applied."""
    return [key for key in keys if _is_beside_layers(model.model.get_submodule(key.rpartition(".")[0]))]


def _is_beside_layers(module) -> bool:
    return any("." in name for name, _ in module.named_parameters())
