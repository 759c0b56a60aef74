"""SaRA for ComfyUI: train, apply and bake sparse deltas. ComfyUI's way in; the nodes are in ``nodes``."""

try:
    from .nodes import comfy_entrypoint
except (ImportError, AttributeError) as error:
    from .install import problem

    # What is missing or too old is the likely cause; without any, the error says best itself what it is.
    if problem() is None:
        raise
    raise ImportError(problem()) from error

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
