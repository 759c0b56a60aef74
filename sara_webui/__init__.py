"""The WebUIs' face of sara_core: thin, as nodes/ is ComfyUI's. Only hosts/ knows the insides of a WebUI."""
