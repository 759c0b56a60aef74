"""A base is known again in every precision, and told from its fine-tunes and from other models as far as bits allow."""

import itertools

import pytest
import torch

from sara_core.delta.metadata import BASE_IDENTITY, BASE_PRECISION
from sara_core.models.identity import BASE, EITHER, FINE_TUNE, OTHER
from tests.support import quantised_models
from tests.support.family_models import FAMILIES, FLUX_LAYOUT, Family, transformer
from tests.support.quantised_models import KINDS, bf16_weights, model

FEW_BITS = ("nvfp4", "convrot w4a4", "GGUF Q5_0", "GGUF Q4_0")
# The tests' Q4_K is random, not a quantisation of anything.
READ = [kind for kind in KINDS if kind != "GGUF Q4_K"]
# Of models other than the base some of each make: a file takes time.
TRIED = ("bf16", "fp8 e4m3", "fp8 scaled", "nvfp4", "int8", "GGUF Q8_0")
# A LoRA of usual strength changes a weight by a few per cent of its usual size, if it is among those that it changes.
LIGHT = 0.02


def tuned(weights, change=LIGHT):
    """Every matrix changed by this share of its usual size."""
    generator = torch.Generator().manual_seed(9)
    return {name: _tuned(weight, change, generator) if weight.dim() > 1 else weight for name, weight in weights.items()}


def _tuned(weight, change, generator):
    return (weight.float() + change * weight.float().std() * torch.randn(weight.shape, generator=generator)).to(weight)


@pytest.fixture(scope="module")
def deep():
    """A Flux of as many weights as identities are made for, each of them small."""

    def make():
        from comfy.ldm.flux.model import Flux

        return transformer(Flux, {**FLUX_LAYOUT, "depth": 5, "depth_single_blocks": 12})

    family = Family("deep", make, FAMILIES["Flux"].latent, FAMILIES["Flux"].encode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(quantised_models.LAYOUTS, "deep", family)
        patch.setitem(quantised_models._ARCHITECTURES, "deep", "flux")
        yield "deep"


@pytest.fixture(scope="module")
def known(comfy, deep, tmp_path_factory):
    """(whose, kind) → what a model of these weights is known by: its metadata, and what is compared with metadata."""
    identity, found = comfy.pack_module("nodes.host.identity"), {}
    base = bf16_weights(deep)
    whose = {"base": base, "light fine-tune": tuned(base), "unrelated": bf16_weights(deep, seed=1)}
    with pytest.MonkeyPatch.context() as patch:
        for (owner, weights), kind in itertools.product(whose.items(), READ):
            if owner != "base" and kind not in TRIED:
                continue
            patch.setattr(quantised_models, "bf16_weights", lambda *_, weights=weights: weights)
            loaded = model(kind, deep, tmp_path_factory.mktemp("known"))  # a loaded file may be mapped
            found[owner, kind] = identity.identity_metadata(loaded), identity.weights_of(loaded)
    return found


@pytest.fixture
def compare(comfy):
    return comfy.pack_module("sara_core.models.identity").compare


def right(owner, kinds):
    few = any(kind in FEW_BITS for kind in kinds)
    return {
        "base": {EITHER} if few else {BASE},
        "light fine-tune": {EITHER, FINE_TUNE} if few else {FINE_TUNE},
        "unrelated": {OTHER},
    }[owner]


@pytest.mark.parametrize("owner", ["base", "unrelated", "light fine-tune"])
def test_no_verdict_between_any_two_precisions_is_false(known, compare, owner):
    pairs = {*itertools.product(TRIED, TRIED), *itertools.product(READ, ["bf16"]), *itertools.product(["bf16"], READ)}
    pairs = [pair for pair in sorted(pairs) if (owner, pair[1]) in known]
    kinds = {pair: compare(known["base", pair[0]][0], known[owner, pair[1]][1]).kind for pair in pairs}
    false = [(*pair, kind) for pair, kind in kinds.items() if kind not in right(owner, pair)]
    print(f"{owner}: {len(false)} of {len(pairs)} verdicts are false: {false}")
    assert not false and len(pairs) >= 20


@pytest.mark.parametrize("kind", ["bf16", "fp8 e4m3", "GGUF BF16"])
def test_what_is_only_cast_is_recorded_as_older_versions_read_it(known, kind):
    assert known["base", kind][0][BASE_IDENTITY].startswith("1:")


@pytest.mark.parametrize(
    "kind, precision",
    [("fp8 e4m3", "fp8 e4m3"), ("fp8 scaled, old", "fp8 scaled"), ("nvfp4", "nvfp4"), ("GGUF Q4_0", "GGUF Q4_0")],
)
def test_a_delta_says_which_precision_it_was_trained_in(known, kind, precision):
    assert known["base", kind][0][BASE_PRECISION] == precision


def test_the_node_notes_another_precision_and_does_not_warn(comfy, tmp_path, known, monkeypatch, caplog):
    identity = comfy.pack_module("nodes.host.identity")
    delta = comfy.pack_module("sara_core.delta").SparseDelta({}, known["base", "fp8 scaled"][0])
    other = model("GGUF Q8_0", "deep", tmp_path)
    caplog.set_level("INFO")
    text = identity.remark(other, delta)
    assert text == "This delta was trained on fp8 scaled weights, this model has GGUF Q8_0: that works."
    assert [record.levelname for record in caplog.records if text in record.message] == ["INFO"]
    assert identity.remark(model("fp8 scaled", "deep", tmp_path), delta) == ""


def test_a_quantised_models_patches_are_not_taken_for_a_fine_tune(comfy, compare, tmp_path, known, deep):
    import comfy.model_management as management

    identity, loaded = comfy.pack_module("nodes.host.identity"), model("fp8 scaled", deep, tmp_path)
    key = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    loaded.add_patches({key: ("diff", (torch.ones(512, 128),))})
    management.load_models_gpu([loaded], force_full_load=True)
    try:
        assert compare(known["base", "bf16"][0], identity.weights_of(loaded)).kind == BASE
    finally:
        management.unload_all_models()


def test_only_the_rows_with_recorded_elements_are_dequantised(comfy, tmp_path, deep, monkeypatch):
    from comfy_kitchen.tensor import QuantizedTensor

    identity, loaded, largest = comfy.pack_module("nodes.host.identity"), model("nvfp4", deep, tmp_path), []
    dequantise = QuantizedTensor.dequantize
    monkeypatch.setattr(
        QuantizedTensor, "dequantize", lambda weight: largest.append(len(weight._qdata)) or dequantise(weight)
    )
    identity.identity_metadata(loaded)
    assert largest and max(largest) <= 128
