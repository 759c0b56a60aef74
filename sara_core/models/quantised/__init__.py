"""Quantised weights in checkpoint files: what they are, their values, and a delta added to them.

In a file a quantised weight is bytes, one or several scales beside it, and a description of the format: JSON in a
tensor `<layer>.comfy_quant`, or in the file's metadata. Older float8 files have a scale alone
(`<layer>.scale_weight`). Each format is one record in `registry.FORMATS`. What is not among them is refused by name.
"""

from .elements import DTYPES, FLOAT8, SCALES

__all__ = ["DTYPES", "FLOAT8", "SCALES"]
