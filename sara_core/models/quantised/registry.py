"""The formats of quantised weights that are known, by what descriptions call them."""

from collections.abc import Mapping

from .float8 import Float8
from .formats import Format
from .int8 import Int8
from .microscaled import Mxfp8, Nvfp4
from .w4a4 import ConvRotW4A4

# By the name that a description says.
FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Float8("float8_e4m3fn", "weight_scale"),
        Float8("float8_e5m2", "weight_scale"),
        Mxfp8(),
        Nvfp4(),
        Int8(),
        ConvRotW4A4(),
    )
}
# float8 without a description, by the scale beside it.
UNDESCRIBED: Mapping[str | None, Format] = {
    scale: Float8("float8", scale) for scale in (None, "scale_weight", "weight_scale")
}
