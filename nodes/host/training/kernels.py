"""Fused kernels of the host that have no gradient, replaced for the time of training.

Models ask `model_management.in_training` before they use one, but not all do (Cosmos Predict2, Anima and JoyImage in
ComfyUI 0.30). The package of these kernels carries each of them as plain PyTorch too, for machines without a GPU.
"""

from collections.abc import Callable

_KERNELS = (
    "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1",
    "rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1",
)  # fmt: skip


def use_differentiable_kernels() -> Callable[[], None]:
    """Returns a function that undoes it."""
    try:
        import comfy_kitchen as package
        from comfy_kitchen.backends.eager import rope as plain
    except ImportError:  # versions of the host that compute this without the package
        return lambda: None
    replaced = {name: getattr(package, name) for name in _KERNELS if hasattr(package, name) and hasattr(plain, name)}
    for name in replaced:
        setattr(package, name, getattr(plain, name))

    def undo():
        for name, kernel in replaced.items():
            setattr(package, name, kernel)

    return undo
