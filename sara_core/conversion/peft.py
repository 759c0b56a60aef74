"""What PEFT calls its files, and what it puts before the names of a model's layers."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The weights of a folder's adapter; older versions had torch.save write them.
WEIGHT_FILES = (WEIGHTS, "adapter_model.bin")
PREFIX = "base_model.model."
