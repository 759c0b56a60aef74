"""Changes on quantised weights beside what else a MODEL carries: other deltas, LoRAs, clones, partial loads, errors."""

import pytest
import torch
from safetensors.torch import save_file

from tests.nodes.precision.test_apply import applied
from tests.support import quantised_models
from tests.support.quantised_effects import delta_of, dense, is_whole, layer_outputs
from tests.support.quantised_models import output
from tests.support.toy_models import unload

# Computed beside the host's own product; by a weight function; and as the pack's patches.
KINDS = ["int8", "nvfp4", "GGUF Q4_0"]
LAYER = "diffusion_model.double_blocks.0.img_mlp.0"


@pytest.fixture
def pack(comfy):
    yield comfy.pack_module("sara_core.delta")
    unload()


@pytest.fixture(scope="module", params=KINDS)
def model(comfy, request, tmp_path_factory):
    return quantised_models.model(request.param, "Flux", tmp_path_factory.mktemp("together"))


def change_of_output(patcher, before):
    return layer_outputs(patcher, [LAYER])[LAYER] - before[LAYER]


def wanted(delta, factor, seed=5):
    change = dense(delta.entries[f"{LAYER}.weight"])
    return factor * torch.randn(64, change.shape[1], generator=torch.Generator().manual_seed(seed)) @ change.T


def test_two_deltas_add_up_and_opposite_strengths_cancel(comfy, pack, model):
    delta, before = delta_of(pack), layer_outputs(model, [LAYER])
    once = applied(comfy, model, delta, 1.0)
    assert is_whole(change_of_output(applied(comfy, once, delta, -0.25), before), wanted(delta, 0.75))
    cancelled = change_of_output(applied(comfy, once, delta, -1.0), before)
    assert cancelled.norm() < 1e-4 * wanted(delta, 1.0).norm()
    assert is_whole(change_of_output(once, before), wanted(delta, 1.0))
    assert applied(comfy, model, delta, 0.0) is model


def lora(comfy, delta):
    rows, columns = delta.entries[f"{LAYER}.weight"].shape
    generator = torch.Generator().manual_seed(3)
    path = comfy.base / "models" / "loras" / "of_one_layer.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {
        f"{LAYER}.lora_up.weight": torch.randn(rows, 4, generator=generator) * 0.1,
        f"{LAYER}.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.1,
    }
    save_file(tensors, path)
    return path.name


@pytest.mark.parametrize("sara_first", [True, False])
def test_beside_a_lora_on_the_same_layer_the_change_is_whole(comfy, pack, model, sara_first):
    delta = delta_of(pack)
    name = lora(comfy, delta)

    def with_lora(patcher):
        return comfy.execute("LoraLoaderModelOnly", model=patcher, lora_name=name, strength_model=1.0).outputs[0]

    with_one = layer_outputs(with_lora(model), [LAYER])
    both = with_lora(applied(comfy, model, delta)) if sara_first else applied(comfy, with_lora(model), delta)
    assert is_whole(change_of_output(both, with_one), wanted(delta, 0.7))


@pytest.fixture
def partly_loaded(model):
    """Loads a MODEL so that nothing of it fits, as on a small card."""
    made = []

    def load(patcher):
        unload()
        made.append(patcher)
        patcher.patch_model(patcher.load_device, lowvram_model_memory=1)
        assert patcher.model.model_lowvram

    yield load
    for patcher in made:
        patcher.unpatch_model(patcher.offload_device)


def test_it_is_whole_when_only_a_part_of_the_model_is_loaded(comfy, pack, model, partly_loaded):
    delta = delta_of(pack)
    partly_loaded(model)
    before = layer_outputs(model, [LAYER], load=False)
    model.unpatch_model(model.offload_device)
    patched = applied(comfy, model, delta)
    partly_loaded(patched)
    after = layer_outputs(patched, [LAYER], load=False)
    assert is_whole(after[LAYER] - before[LAYER], wanted(delta, 0.7))


def test_clones_and_the_model_itself_keep_their_own_changes(comfy, pack, model):
    delta, untouched = delta_of(pack), output(model, "Flux")
    strong, weak = applied(comfy, model, delta, 1.0), applied(comfy, model, delta, 0.5)
    first, second = output(strong, "Flux"), output(weak, "Flux")
    assert torch.equal(output(strong.clone(), "Flux"), first) and torch.equal(output(weak, "Flux"), second)
    assert not torch.equal(first, second) and torch.equal(output(model, "Flux"), untouched)


def test_nothing_stays_on_the_layers_after_an_error(comfy, pack, model):
    patched = applied(comfy, model, delta_of(pack))
    output(patched, "Flux")
    layers = dict(patched.model.named_modules())
    functions = {name: len(getattr(layer, "weight_function", ())) for name, layer in layers.items()}

    def fail(*_):
        raise RuntimeError("in the last layer")

    handle = patched.model.diffusion_model.final_layer.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the last layer"):
        output(patched, "Flux")
    handle.remove()
    assert not [name for name, layer in layers.items() if "forward" in vars(layer)]
    assert functions == {name: len(getattr(layer, "weight_function", ())) for name, layer in layers.items()}


def test_what_saves_models_leaves_it_out_and_the_node_says_so(comfy, pack, model, caplog):
    delta = delta_of(pack, of=lambda name, _: f"diffusion_model.{name}" == f"{LAYER}.weight")
    patched = applied(comfy, model, delta)
    if patched.patches:  # as on GGUF, which nothing saves
        assert "leave it out" not in caplog.text
        return
    assert "leave it out. SaRA Bake writes it into a file" in caplog.text
    saved, plain = (saved_weight(one) for one in (patched, model))
    assert torch.equal(saved, plain)


def saved_weight(patcher):
    """What Save Checkpoint takes from a loaded MODEL; from one that is not, it cannot save int8 and nvfp4."""
    layer_outputs(patcher, [LAYER])
    return patcher.state_dict_for_saving()[f"model.{LAYER}.weight"].clone()
