"""SaRA for ComfyUI: train, apply and bake sparse deltas. ComfyUI's way in; the nodes are in ``nodes``."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
