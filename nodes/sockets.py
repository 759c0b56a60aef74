"""The pack's own socket type."""

from comfy_api.latest import io

# On the wire: a sara_core.SparseDelta whose entries are named by ComfyUI's model keys.
SaraDelta = io.Custom("SARA_DELTA")
