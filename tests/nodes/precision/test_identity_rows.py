"""A row of a quantised weight is what the whole weight has there, once the host has dequantised it."""

import pytest
import torch

from tests.support.quantised_models import KINDS, is_quantised, load, write

PLAIN = ("bf16", "fp8 e4m3", "fp8 e5m2")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PLAIN])
def test_a_row_is_the_whole_weights_row(comfy, tmp_path, kind):
    rows = comfy.pack_module("nodes.host.quantised_rows")
    precision = comfy.pack_module("nodes.host.precision")
    model = load(write(kind, "Flux", tmp_path), "Flux").model
    checked = 0
    for name, weight in model.named_parameters():
        if not is_quantised(name.removeprefix("diffusion_model."), weight) or precision.precision_of(weight) is None:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        whole = precision.dequantised(module).reshape(-1, rows.row_length(weight))
        for row in {0, len(whole) // 2, len(whole) - 1}:
            found = rows.dequantised_row(module, weight, row)
            # The layer's own route is through the dtype that the host computes in.
            torch.testing.assert_close(found, whole[row], rtol=2**-8, atol=1e-6)
            checked += 1
    assert checked
