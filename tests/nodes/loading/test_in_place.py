"""Patches of deltas carried out in place: the bits of the host's own way, its undo, and whom it must not reach."""

import gc
import threading
import types

import pytest
import torch

from tests.support.patched_models import Deltas, as_the_host_patches, copies, load, small_patcher
from tests.support.toy_models import assert_same_bits, unload

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def nothing_loaded(comfy):
    yield
    unload()


@pytest.fixture
def parts(comfy, pack):
    """The pack's own parts that the tests look into."""
    return types.SimpleNamespace(
        deltas=Deltas(pack.patching.SaRAAdapter, pack.SparseEntry),
        kept=comfy.pack_module("nodes.host.loading.kept").KeptElements,
    )


@pytest.fixture
def patched(parts):
    """Makes a clone of a MODEL with a delta: of which layers, which one, and how strong."""

    def patched(patcher, names=("first", "conv"), seed=0, strength=0.7):
        clone = patcher.clone()
        clone.add_patches(parts.deltas.patches(names, seed), strength)
        return clone

    return patched


def in_place(parts, patcher):
    return {key for key, kept in patcher.backup.items() if isinstance(kept, parts.kept)}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_delta_another_strength_another_delta_and_none(parts, patched, dtype, inference):
    with torch.inference_mode(inference):
        model = small_patcher(dtype, channels_last=True)
    base, places = copies(model), {name: weight.data_ptr() for name, weight in model.model.named_parameters()}
    for seed, strength in ((0, 0.7), (0, -1.3), (1, 1.0), (2, 0.5)):
        with torch.inference_mode(inference):
            load(one := patched(model, seed=seed, strength=strength))
        assert_same_bits(copies(model), as_the_host_patches(base, one.patches))
        assert in_place(parts, model) == {"first.weight", "conv.weight"} == set(model.backup)
        assert {name: weight.data_ptr() for name, weight in model.model.named_parameters()} == places
    load(model)
    assert_same_bits(copies(model), base)
    assert not model.backup


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seeds", [(0, 1), (0, 2), (0, 1, 2)])
def test_several_deltas_are_one_sum_with_one_rounding(parts, patched, dtype, seeds):
    model = small_patcher(dtype)
    base, several = copies(model), model
    for seed in seeds:
        several = patched(several, seed=seed, strength=0.3 + seed)
    load(several)
    assert in_place(parts, model) == {"first.weight", "conv.weight"}
    assert_same_bits(copies(model), as_the_host_patches(base, several.patches))
    unload()
    assert_same_bits(copies(model), base)


def test_what_one_change_writes_another_does_not_add_to(parts, patched):
    """Another strength starts from the base, and only the elements are written: what someone else holds in the rest
    of the weight stays."""
    model = small_patcher()
    load(patched(model))
    weight = model.model.first.weight
    rest = (weight == copies(model)["first.weight"]).flatten()
    rest[parts.deltas.patches(("first",), 0)["first.weight"].weights[0][0].long()] = False
    position = int(rest.nonzero()[0])
    weight.view(-1)[position] = 77.0
    del weight
    load(patched(model, strength=0.1))
    assert model.model.first.weight.view(-1)[position] == 77.0


def test_a_clone_that_dies_takes_nothing_off(parts, patched):
    model = small_patcher()
    base, live = copies(model), patched(model)
    load(live)
    expected = as_the_host_patches(base, live.patches)
    dying = live.clone()
    del dying
    gc.collect()
    assert_same_bits(copies(model), expected)
    load(live)
    assert_same_bits(copies(model), expected)
    other = patched(model, strength=-2.0)
    load(other)
    del live
    gc.collect()
    assert_same_bits(copies(model), as_the_host_patches(base, other.patches))


@pytest.mark.parametrize("where", ["outside inference mode", "another thread"])
def test_freeing_gives_every_bit_back_from_anywhere(parts, patched, where):
    with torch.inference_mode():
        model = small_patcher()
        base = copies(model)
        load(patched(model))
    assert model.model.first.weight.is_inference() and in_place(parts, model)
    if where == "another thread":
        thread = threading.Thread(target=unload)
        thread.start()
        thread.join()
    else:
        unload()
    unload()
    assert_same_bits(copies(model), base)
    assert not model.backup


def test_two_models_of_one_checkpoint_that_are_loaded_together_do_not_add_up(parts, patched):
    model = small_patcher()
    base, first, second = copies(model), patched(model), patched(model, names=("first",), seed=1)
    for both in ((first, second), (second, first), (first, model)):
        load(*both)
        (loaded,) = (one for one in both if one.patches_uuid == model.model.current_weight_patches_uuid)
        assert_same_bits(copies(model), as_the_host_patches(base, loaded.patches))
    unload()
    assert_same_bits(copies(model), base)


@pytest.mark.parametrize("loaded_first", [True, False])
def test_a_merge_reads_the_base_before_and_while_a_delta_is_on(parts, patched, loaded_first):
    model, other = small_patcher(seed=1), small_patcher(seed=2)
    base, other_base, live = copies(model), copies(other), patched(model)
    if loaded_first:
        load(live)
    given = live.get_key_patches()
    merged = other.clone()
    merged.add_patches(given, 0.25, 0.75)
    reference = {
        key: [(0.25, [(base[key], lambda weight, **_: weight), *live.patches.get(key, [])], 0.75, None, None)]
        for key in given
    }
    if not loaded_first:
        load(live)
        assert "first.weight" not in in_place(parts, model)  # the merged MODEL holds it
    load(merged)
    assert_same_bits(copies(other), as_the_host_patches(other_base, reference))
    assert_same_bits(copies(model), as_the_host_patches(base, live.patches))
    unload()
    assert_same_bits(copies(model), base)
    assert_same_bits(copies(other), other_base)


@pytest.mark.parametrize("delta_first", [True, False])
def test_a_lora_on_the_same_weight_is_rounded_once_and_the_other_weights_are_in_place(parts, patched, delta_first):
    model = small_patcher(torch.bfloat16)
    base, lora = copies(model), {"first.weight": ("diff", (torch.randn(12, 8) * 0.01,))}
    both = model.clone()
    if not delta_first:
        both.add_patches(lora, 0.9)
    both = patched(both)
    if delta_first:
        both.add_patches(lora, 0.9)
    load(both)
    assert in_place(parts, model) == {"conv.weight"} and set(model.backup) == {"conv.weight", "first.weight"}
    assert_same_bits(copies(model), as_the_host_patches(base, both.patches))
    load(patched(model))
    assert in_place(parts, model) == {"conv.weight", "first.weight"}
    unload()
    assert_same_bits(copies(model), base)


def test_a_tied_weight_is_changed_where_the_delta_says_alone(parts, patched):
    model = small_patcher()
    base, one = copies(model), patched(model, names=("second", "first"))
    load(one)
    assert in_place(parts, model) == {"first.weight"}
    assert_same_bits(copies(model), as_the_host_patches(base, one.patches))


def test_whoever_keeps_a_weight_keeps_its_values(parts, patched):
    model = small_patcher()
    plain = dict(model.model.state_dict())
    values = copies(model)
    load(one := patched(model))
    assert not in_place(parts, model)
    assert_same_bits(plain, values)
    del plain
    load(model)
    load(one)
    assert in_place(parts, model) == {"first.weight", "conv.weight"}
    changed, values = dict(model.model.state_dict()), copies(model)
    load(patched(model, seed=1))
    assert_same_bits(changed, values)


def test_low_vram_and_unloading_in_part_give_the_same_weights_back(parts, patched):
    model = small_patcher()
    base, one = copies(model), patched(model)
    load(one)
    expected = copies(model)
    one.partially_unload(torch.device("cpu"), 700)
    assert model.model.first.weight_function and "first.weight" not in model.backup
    for name, weight in copies(model).items():
        module = model.model.get_submodule(name.rpartition(".")[0])
        for function in getattr(module, "weight_function", []) if name.endswith("weight") else []:
            weight = function(weight)
        assert torch.equal(weight, expected[name])
    unload()
    assert_same_bits(copies(model), base)


@pytest.mark.parametrize("change", ["force_cast", "wrapper", "on_load", "save"])
def test_what_only_loading_anew_does_is_done(parts, patched, change):
    import comfy.patcher_extension

    model = small_patcher()
    base = copies(model)
    load(patched(model))
    other, heard = patched(model, strength=0.2), []
    if change == "force_cast":
        other.force_cast_weights = True
    elif change == "wrapper":
        other.add_weight_wrapper("first.weight", heard.append)
    elif change == "on_load":
        other.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, lambda *given: heard.append(given))
    load(other, force_patch_weights=change == "save")
    assert model.model.first.comfy_force_cast_weights == (change == "force_cast")
    assert model.model.first.weight_function == ([heard.append] if change == "wrapper" else [])
    assert len(heard) == (change == "on_load")
    assert_same_bits(copies(model), as_the_host_patches(base, other.patches))
    load(model)
    assert_same_bits(copies(model), base)
    assert not model.model.first.weight_function


def test_a_model_is_known_again_while_a_delta_is_on(comfy, parts, model, delta):
    identity = comfy.pack_module("nodes.host.identity")
    before = identity.identity_metadata(model)
    live = comfy.execute("SaRAApply", model=model, delta=delta, strength=1.0).outputs[0]
    load(live)
    assert in_place(parts, live) and identity.identity_metadata(live) == before


def test_patchers_of_other_kinds_go_the_hosts_way(parts, patched):
    import comfy.model_patcher

    class Other(comfy.model_patcher.ModelPatcher):
        pass

    model = small_patcher()
    base = copies(model)
    one = patched(Other(model.model, model.load_device, model.offload_device))
    load(one)
    assert one.backup and not in_place(parts, one)
    assert_same_bits(copies(model), as_the_host_patches(base, one.patches))
    unload()
    assert_same_bits(copies(model), base)


def test_a_patcher_that_does_not_share_the_backup_neither_doubles_nor_loses_anything(parts, patched):
    import comfy.model_patcher

    model = small_patcher()
    base, one = copies(model), patched(model)
    load(one)
    stranger = patched(comfy.model_patcher.ModelPatcher(model.model, model.load_device, model.offload_device))
    stranger.load(torch.device("cpu"), full_load=True)
    for patcher in (stranger, one):
        patcher.detach()
    assert_same_bits(copies(model), base)


def test_a_failure_in_between_leaves_the_base(parts, patched, monkeypatch):
    model = small_patcher()
    base = copies(model)
    load(patched(model))
    original, calls = parts.kept.write, []

    def failing(self, changes):
        original(self, changes)
        calls.append(self)
        if len(calls) == 2:
            raise MemoryError

    monkeypatch.setattr(parts.kept, "write", failing)
    with pytest.raises(MemoryError):
        load(patched(model, strength=0.1))
    calls.clear()
    unload()
    assert_same_bits(copies(model), base)
    assert not model.backup


def test_hooks_on_top_see_what_they_see_today(parts, patched):
    import comfy.hooks

    model = small_patcher()
    base, one = copies(model), patched(model)
    hooked = one.clone()
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    change = torch.ones(12, 8) * 0.5
    hooked.add_hook_patches(hook, {"first.weight": ("diff", (change,))}, 1.0)
    group = comfy.hooks.HookGroup()
    group.add(hook)
    load(one)
    load(hooked)
    assert not in_place(parts, model)
    hooked.patch_hooks(group)
    on_top = as_the_host_patches(base, one.patches)["first.weight"] + change
    assert torch.equal(model.model.first.weight, on_top)
    load(one)
    one.hook_backup["first.weight"] = (model.model.first.weight.clone(), torch.device("cpu"))
    with torch.no_grad():
        model.model.first.weight.add_(1)
    unload()
    assert_same_bits(copies(model), base)


def test_it_is_installed_once_and_only_where_the_host_is_the_one_it_knows(comfy, monkeypatch):
    module = comfy.pack_module("nodes.host.loading.in_place")
    patcher = module._Patcher
    before = patcher.load
    module.register_in_place()
    assert patcher.load is before and hasattr(before, "sara_core")
    monkeypatch.setattr(patcher, "load", lambda self, other: None)
    monkeypatch.setattr(patcher, "unpatch_model", untouched := (lambda self, unpatch_weights=True: None))
    module.register_in_place()
    assert patcher.unpatch_model is untouched
