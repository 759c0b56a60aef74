"""The pack's own socket types."""

from comfy_api.latest import io

# On the wire: a sara_core.SparseDelta whose entries are named by ComfyUI's model keys.
SaraDelta = io.Custom("SARA_DELTA")
# On the wire: option → value, as SaRA Train Options has them; settings of pictures, as SaRA Train Samples has them.
SaraOptions = io.Custom("SARA_OPTIONS")
SaraSamples = io.Custom("SARA_SAMPLES")
