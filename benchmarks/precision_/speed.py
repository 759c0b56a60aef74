"""What a delta on a quantised layer costs at each call, in both ways."""

from pathlib import Path

import torch

from benchmarks.lib.timing import best_milliseconds
from tests.support.toy_models import delta_entries

# The widest Linear of SDXL's UNet, and the tokens of a picture of 1024×1024 there.
OUT, IN, TOKENS = 10240, 1280, 1024
DENSITY = 0.005
LAYOUTS = {
    "fp8 scaled": ("TensorCoreFP8E4M3Layout", "float8_e4m3fn", {"scale": "recalculate"}),
    "mxfp8": ("TensorCoreMXFP8Layout", "mxfp8", {}),
    "nvfp4": ("TensorCoreNVFP4Layout", "nvfp4", {}),
    "int8": ("TensorWiseINT8Layout", "int8_tensorwise", {}),
}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
COLUMNS = {
    "dequantised": "dequantised, no delta", "added": "… with the delta", "quantised": "multiplied quantised, no delta",
    "beside": "… with the delta beside",
}  # fmt: skip


def measure(host, folder: Path, device: str) -> list[dict]:
    """A record per precision: milliseconds a call of the layer, None where the device has no such product."""
    pack, dtype = host.pack_module("sara_core.delta"), DTYPES[device]
    layers = host.pack_module("nodes.host.quantised_layers")
    entry = pack.SparseEntry(*delta_entries({"": torch.empty(OUT, IN)}, DENSITY)[""])
    x = torch.randn(1, TOKENS, IN, dtype=dtype, device=device)
    return [{"precision": name, **_times(layers, entry, x, *kind)} for name, kind in LAYOUTS.items()]


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, with what a delta makes of a call's time in brackets."""
    rows = []
    for record in records:
        cells = ["-" if record[way] is None else f"{record[way]:.2f}" for way in COLUMNS]
        for plain, changed in ((0, 1), (2, 3)):
            times = [record[list(COLUMNS)[number]] for number in (plain, changed)]
            cells[changed] += "" if None in times else f" (×{times[1] / times[0]:.2f})"
        rows.append([record["precision"], *cells])
    return ["ms a call", *COLUMNS.values()], rows


def _times(layers, entry, x, layout: str, format: str, options: dict) -> dict[str, float | None]:
    layer = _layer(x, layout, format, options)
    times = {}
    layer.weight_function = [lambda weight: weight]
    times["dequantised"] = _milliseconds(layer, x)
    layer.weight_function = [layers.Added(entry, 1.0)]
    times["added"] = _milliseconds(layer, x)
    layer.weight_function = []
    times["quantised"] = _milliseconds(layer, x)
    with layers.Beside(entry, 1.0).during_call(layer, "weight"):
        times["beside"] = _milliseconds(layer, x)
    return times


def _layer(x, layout: str, format: str, options: dict):
    import comfy.ops
    from comfy import quant_ops

    layer = comfy.ops.mixed_precision_ops(compute_dtype=x.dtype).Linear(IN, OUT, bias=False)
    weight = torch.randn(OUT, IN, dtype=x.dtype, device=x.device) * IN**-0.5
    packed, parameters = quant_ops.get_layout_class(layout).quantize(weight, **options)
    tensor = quant_ops.QuantizedTensor(packed, layout, parameters)
    layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
    layer.layout_type, layer.quant_format = layout, format
    return layer


def _milliseconds(layer, x) -> float | None:
    try:
        return best_milliseconds(lambda: layer(x), x.device.type)
    except (ValueError, RuntimeError, NotImplementedError):
        return None
