"""The kinds of layers that a quantised model has, one by one, and where the host looks for what is put on them."""

import types

import pytest
import torch

from tests.nodes.precision.test_apply import applied
from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, is_whole
from tests.support.quantised_models import output
from tests.support.toy_models import delta_entries, unload

STRENGTH = -1.5


@pytest.fixture(scope="module")
def pack(comfy):
    yield types.SimpleNamespace(
        layers=comfy.pack_module("nodes.host.quantised_layers"),
        precision=comfy.pack_module("nodes.host.precision"),
        SparseEntry=comfy.pack_module("sara_core.delta").SparseEntry,
        SparseDelta=comfy.pack_module("sara_core.delta").SparseDelta,
    )
    unload()


@pytest.fixture(scope="module")
def int8(comfy, tmp_path_factory):
    return quantised_models.model("int8", "Flux", tmp_path_factory.mktemp("int8"))


def entry_of(pack, *shape):
    return pack.SparseEntry(*delta_entries({"": torch.zeros(shape)}, density=0.05)[""])


def alone(layer):
    """A model of one layer, as a wrapper is told of it."""
    return torch.nn.ModuleDict({"layer": layer})


def in_a_call(pack, model, entries, compute):
    """What the changes add to what `compute` gives, during a call of the model."""
    changes = {key: pack.layers.Beside(entry, STRENGTH) for key, entry in entries.items()}
    with torch.inference_mode():
        before = compute()
        after = pack.layers.DuringCalls(changes)(executor(model, compute))
        assert torch.equal(compute(), before)
    return after - before


def executor(model, compute):
    """As the host hands a wrapper the rest of a call."""
    return type("Executor", (), {"__call__": lambda self: compute(), "class_obj": model})()


def quantised(layout, weight, **options):
    from comfy import quant_ops

    packed, parameters = quant_ops.get_layout_class(layout).quantize(weight, **options)
    return torch.nn.Parameter(quant_ops.QuantizedTensor(packed, layout, parameters), requires_grad=False)


def mixed_operations():
    import comfy.ops

    return comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)


@pytest.mark.parametrize("layout", ["TensorCoreFP8E4M3Layout", "TensorWiseINT8Layout"])
def test_a_quantised_embedding_is_looked_up_as_always_with_its_change_beside(pack, layout):
    layer = mixed_operations().Embedding(40, 64)
    layer.weight = quantised(layout, torch.randn(40, 64))
    layer.layout_type = layout
    layer.quant_format = "int8_tensorwise" if "INT8" in layout else "float8_e4m3fn"
    assert pack.precision.multiplies_quantised(layer)
    entry, tokens = entry_of(pack, 40, 64), torch.arange(40)[None]
    found = in_a_call(pack, alone(layer), {"layer.weight": entry}, lambda: layer(tokens, out_dtype=torch.float32))
    assert is_whole(found[0], STRENGTH * dense(entry))


def test_experts_take_each_their_own_part_of_a_change(pack):
    from comfy import quant_ops

    layer = mixed_operations().MoEExperts(3, 64, 32, bias=False)
    banks = [quantised("TensorCoreFP8E4M3Layout", torch.randn(32, 64)) for _ in range(3)]
    parameters = banks[0]._params
    bank = type(parameters)(
        scale=torch.stack([bank._params.scale for bank in banks]), orig_dtype=torch.float32, orig_shape=(3, 32, 64)
    )
    packed = torch.stack([bank._qdata.view(torch.uint8) for bank in banks]).view(torch.float8_e4m3fn)
    tensor = quant_ops.QuantizedTensor(packed, "TensorCoreFP8E4M3Layout", bank)
    layer.weight, layer.layout_type = torch.nn.Parameter(tensor, requires_grad=False), "TensorCoreFP8E4M3Layout"
    whole = pack.precision.dequantised(layer)
    assert torch.equal(whole, torch.stack([bank.dequantize() for bank in banks]))
    entry, x = entry_of(pack, 3, 32, 64), torch.randn(5, 64)
    found = in_a_call(
        pack, alone(layer), {"layer.weight": entry},
        lambda: torch.stack([layer.expert_linear(x, number) for number in range(3)]),
    )  # fmt: skip
    assert is_whole(found, STRENGTH * torch.einsum("bi,eoi->ebo", x, dense(entry)))


def test_the_fast_product_of_plain_fp8_is_kept_and_weight_and_bias_change_beside_it(pack, monkeypatch):
    import comfy.ops

    layer = comfy.ops.fp8_ops.Linear(64, 32).to(torch.float8_e4m3fn)
    layer.weight.data = torch.randn(32, 64).to(torch.float8_e4m3fn)
    layer.bias.data = torch.randn(32).to(torch.float8_e4m3fn)
    assert pack.precision.multiplies_quantised(layer)
    asked = []

    def fast(module, x):
        asked.append(module)
        return torch.nn.functional.linear(x.round(), module.weight.float())

    monkeypatch.setattr(comfy.ops, "fp8_linear", fast)
    entries = {"layer.weight": entry_of(pack, 32, 64), "layer.bias": entry_of(pack, 32)}
    x = torch.randn(7, 64)
    found = in_a_call(pack, alone(layer), entries, lambda: layer(x.clone()))
    assert len(asked) == 3
    wanted = x @ dense(entries["layer.weight"]).T + dense(entries["layer.bias"])
    assert is_whole(found, STRENGTH * wanted)


def test_a_factor_between_input_and_weight_belongs_to_the_weight(pack):
    layer = mixed_operations().Linear(64, 32, bias=False)
    layer.weight = quantised("TensorCoreNVFP4Layout", torch.randn(32, 64))
    layer.layout_type, layer.quant_format, layer._full_precision_mm = "TensorCoreNVFP4Layout", "nvfp4", True
    smoothing = torch.rand(64) + 0.5
    layer.pre_quant_scale = torch.nn.Parameter(smoothing, requires_grad=False)
    x, entry = torch.randn(7, 64), entry_of(pack, 32, 64)
    with torch.inference_mode():
        assert torch.allclose(layer(x), x @ pack.precision.dequantised(layer).T, atol=1e-4)
    assert "layer.pre_quant_scale" not in pack.precision.logical_shapes(_patcher(alone(layer)))
    found = in_a_call(pack, alone(layer), {"layer.weight": entry}, lambda: layer(x))
    assert is_whole(found, STRENGTH * x @ dense(entry).T)
    patcher = _patcher(alone(layer))
    pack.layers.put_on(patcher, {"layer.weight": entry}, STRENGTH)
    assert not patcher.weight_wrapper_patches and _calls(patcher)
    before = layer(x)
    functions = pack.layers.with_added_weights(patcher).weight_wrapper_patches["layer.weight"]
    layer.weight_function = functions
    assert is_whole(layer(x) - before, STRENGTH * x @ dense(entry).T)


@pytest.mark.parametrize("quantised_input", [True, False])
def test_a_layer_that_is_computed_without_being_called_has_its_change_too(pack, quantised_input):
    """MiniMax's second layer of each feed-forward, in int8."""
    import comfy.ops

    if not hasattr(comfy.ops, "linear_input_act"):
        pytest.skip("this ComfyUI calls every layer")
    layer = mixed_operations().Linear(64, 32, bias=False)
    layer.weight = quantised("TensorWiseINT8Layout", torch.randn(32, 64)) if quantised_input else torch.nn.Parameter(
        torch.randn(32, 64), requires_grad=False
    )  # fmt: skip
    layer.layout_type, layer.quant_format = "TensorWiseINT8Layout", "int8_tensorwise"
    x, entries, before = torch.randn(7, 128), {"layer.weight": entry_of(pack, 32, 64)}, comfy.ops.linear_input_act
    activated = comfy.ops.INPUT_ACT_EAGER["swiglu"](x)
    found = in_a_call(pack, alone(layer), entries, lambda: comfy.ops.linear_input_act(layer, x.clone(), "swiglu"))
    assert is_whole(found, STRENGTH * activated @ dense(entries["layer.weight"]).T)
    assert comfy.ops.linear_input_act is before


def _patcher(model):
    import comfy.model_patcher

    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def _calls(patcher):
    import comfy.patcher_extension as extension

    return extension.get_all_wrappers(extension.WrappersMP.APPLY_MODEL, patcher.model_options, is_model_options=True)


def test_with_dynamic_memory_small_layers_get_their_functions_during_calls_only(pack, monkeypatch):
    """The host gives them none when it loads the model."""
    import comfy.ops

    small, large = (comfy.ops.manual_cast.Linear(64, out).to(torch.float8_e4m3fn) for out in (64, 4096))
    model = torch.nn.ModuleDict({"small": small, "large": large}).requires_grad_(False)
    patcher = _patcher(model)
    monkeypatch.setattr(patcher, "is_dynamic", lambda: True, raising=False)
    entries = {"small.weight": entry_of(pack, 64, 64), "large.weight": entry_of(pack, 4096, 64)}
    pack.layers.put_on(patcher, entries, STRENGTH)
    assert list(patcher.weight_wrapper_patches) == ["large.weight"]
    assert [list(call.changes) for call in _calls(patcher)] == [["small.weight"]]
    x = torch.randn(7, 64)
    found = _calls(patcher)[0](executor(model, lambda: small(x))) - small(x)
    assert is_whole(found, STRENGTH * x @ dense(entries["small.weight"]).T)


def test_the_sampler_takes_what_is_beside_and_gives_its_memory_back(comfy, pack, int8):
    ((caption, options),) = quantised_models.LAYOUTS["Flux"].captions(1)
    latent = {"samples": torch.zeros(1, 16, 8, 8)}

    def sampled(model):
        return comfy.execute(
            "KSampler", model=model, seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=[[caption, options]], negative=[[caption, options]], latent_image=latent, denoise=1.0,
        ).outputs[0]["samples"]  # fmt: skip

    before = sampled(int8)
    assert torch.equal(sampled(applied(comfy, int8, delta_of(pack, scale=0.0))), before)
    patched = applied(comfy, int8, delta_of(pack))
    released = []
    for change in _calls(patched)[0].changes.values():
        change.release = lambda: released.append(1)
    assert (sampled(patched) - before).norm() > 1e-2 * before.norm()
    assert len(released) == len(_calls(patched)[0].changes)
    assert torch.equal(sampled(int8), before)


def test_all_of_it_can_be_put_into_weight_functions(comfy, pack, int8):
    """For a training that computes a layer again after the model's own call."""
    patched = applied(comfy, int8, delta_of(pack))
    same = pack.layers.with_added_weights(patched)
    assert not _calls(same) and _calls(patched)
    assert pack.layers.with_added_weights(int8) is int8
    wanted, found = output(patched, "Flux"), output(same, "Flux")
    assert (found - wanted).norm() < 0.2 * (wanted - output(int8, "Flux")).norm()
