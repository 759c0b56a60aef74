"""Base identity: a base is known in any precision, and told from its fine-tunes and from other models."""

import base64
import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sara_core.__main__ import main
from sara_core.delta import SparseDelta, SparseEntry
from sara_core.delta.metadata import BASE_IDENTITY, BASE_NAME
from sara_core.models import identity as identity_module
from sara_core.models.identity import (
    BASE, FINE_TUNE, OTHER, UNKNOWN, compare, identity_of,
)  # fmt: skip
from tests.support.toy_models import delta_entries

VECTOR = Path(__file__).resolve().parents[2] / "vectors" / "base_identity.json"
PREFIX = "diffusion_model."


def model(seed=0, layers=40, width=24, scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for number in range(layers):
        weights[f"{PREFIX}{number}.weight"] = torch.randn(width, 16, generator=generator) * scale
        weights[f"{PREFIX}{number}.bias"] = torch.randn(width, generator=generator)
    return weights


def cast(weights, *dtypes):
    for dtype in dtypes:
        weights = {name: weight.to(dtype) for name, weight in weights.items()}
    return weights


def tuned(weights, change=0.02, seed=1):
    """Every weight changed by some per cent of its usual size."""
    generator = torch.Generator().manual_seed(seed)
    return {n: w + torch.randn(w.shape, generator=generator) * change * float(w.std()) for n, w in weights.items()}


PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64)


@pytest.mark.parametrize("trained", PRECISIONS, ids=str)
@pytest.mark.parametrize("present", PRECISIONS, ids=str)
def test_the_base_is_known_in_whatever_precision_it_is_stored(trained, present):
    weights = model()
    verdict = compare(identity_of(cast(weights, trained)), cast(weights, present))
    assert (verdict.kind, verdict.agreeing, verdict.warning()) == (BASE, 1.0, "")


def test_tiny_weights_are_known_after_half_precision_took_them_to_zero():
    weights = model(scale=3e-8)
    assert compare(identity_of(weights), cast(weights, torch.float16)).kind == BASE


@pytest.mark.parametrize("present", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_fine_tune_is_told_from_the_base(present):
    weights = model()
    verdict = compare(identity_of(weights, "base.safetensors"), cast(tuned(weights), present))
    assert verdict.kind == FINE_TUNE and verdict.agreeing < 0.6 and verdict.likeness > 0.99
    assert "'base.safetensors'" in verdict.warning() and "another fine-tune" in verdict.warning()


def test_a_single_other_layer_makes_it_a_fine_tune():
    weights = model()
    other = {**weights, PREFIX + "7.weight": weights[PREFIX + "7.weight"] + 0.01}
    verdict = compare(identity_of(weights), other)
    assert verdict.kind == FINE_TUNE and verdict.agreeing == 39 / 40


def test_a_heavy_fine_tune_is_still_one():
    assert compare(identity_of(model()), tuned(model(), 0.8)).kind == FINE_TUNE


@pytest.mark.parametrize("other", [model(seed=1), model(width=32), {"x.weight": torch.ones(9, 9)}, {}])
def test_other_models_are_told_from_fine_tunes(other):
    verdict = compare(identity_of(model()), other)
    assert verdict.kind == OTHER and "nothing to do with this model's" in verdict.warning()


def test_names_with_the_prefixes_of_checkpoints_or_with_none_are_the_same():
    weights = model()
    checkpoint = {f"model.{name}": weight for name, weight in weights.items()}
    checkpoint["first_stage_model.x.weight"] = torch.ones(8, 8)
    bare = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    assert identity_of(checkpoint) == identity_of(weights) == identity_of(bare)
    assert compare(identity_of(weights), checkpoint).kind == compare(identity_of(checkpoint), bare).kind == BASE


def test_memory_layout_does_not_matter():
    weights = {"a.weight": torch.randn(8, 6, 3, 3), "b.weight": torch.randn(10, 12)}
    channels_last = {
        "a.weight": weights["a.weight"].to(memory_format=torch.channels_last),
        "b.weight": weights["b.weight"].t().contiguous().t(),
    }
    assert identity_of(channels_last) == identity_of(weights)


def test_float8_weights_may_lie_in_memory_in_any_order():
    weights = cast({"a.weight": torch.randn(8, 6, 3, 3)}, torch.float8_e4m3fn)
    channels_last = {"a.weight": weights["a.weight"].to(memory_format=torch.channels_last)}
    assert not channels_last["a.weight"].is_contiguous()
    assert identity_of(channels_last) == identity_of(weights)


def test_a_few_more_or_fewer_weights_do_not_matter():
    weights = model()
    fewer = dict(list(weights.items())[:-10])
    assert compare(identity_of(weights), fewer).kind == BASE
    assert compare(identity_of(fewer), weights).kind == BASE


@pytest.mark.parametrize("layers, kind", [(20, BASE), (19, OTHER)])
def test_half_of_the_weights_are_enough_to_know_a_base_by(layers, kind):
    weights = model(layers=40)
    fewer = {f"{PREFIX}{number}.weight": weights[f"{PREFIX}{number}.weight"] for number in range(layers)}
    assert compare(identity_of(weights), fewer).kind == kind


@pytest.mark.parametrize("steps, kind", [(0.9, BASE), (1.1, FINE_TUNE), (1.9, FINE_TUNE)])
def test_half_a_step_of_the_records_float16_is_all_that_rounding_explains(steps, kind):
    base = {f"{PREFIX}{number}.weight": torch.ones(8, 8) for number in range(4)}
    moved = {name: weight * (1 + steps * 2**-11) for name, weight in base.items()}
    assert compare(identity_of(base), moved).kind == kind


def turned(weights, cosine):
    """Every weight turned so that each pair of neighbours points a known angle away."""
    sine = (1 - cosine**2) ** 0.5
    rotation = torch.tensor([[cosine, sine], [-sine, cosine]])
    return {name: (weight.view(-1, 2) @ rotation).view_as(weight) for name, weight in weights.items()}


@pytest.mark.parametrize("cosine, kind", [(0.99, FINE_TUNE), (0.7, FINE_TUNE), (0.3, OTHER), (-0.99, OTHER)])
def test_a_fine_tune_points_more_the_same_way_than_not(cosine, kind):
    weights = model()
    verdict = compare(identity_of(weights), turned(weights, cosine))
    assert verdict.kind == kind and abs(verdict.likeness - cosine) < 0.1


def test_what_cannot_be_read_is_unknown():
    quantised = {name: (weight * 100).to(torch.int8) for name, weight in model().items()}
    assert identity_of(quantised) == {} and identity_of({}) == {}
    assert compare(identity_of(model()), quantised).kind == UNKNOWN
    assert compare({}, model()).kind == UNKNOWN and compare({}, model()).warning() == ""
    meta = {name: weight.to("meta") for name, weight in model().items()}
    assert compare(identity_of(model()), meta).kind == UNKNOWN


def test_an_identity_is_small_and_of_every_part_of_a_large_model():
    weights = model(layers=1000, width=4)
    identity = identity_of(weights, "name")
    assert len(identity[BASE_IDENTITY]) < 9000 and identity[BASE_NAME] == "name"
    last = sorted(name for name in weights if name.endswith("weight"))[-30:]
    changed = {**weights, **{name: weights[name] + 1 for name in last}}
    assert compare(identity, changed).kind == FINE_TUNE


def test_a_delta_in_the_weights_shows():
    weights = model(layers=200)
    identity = identity_of(weights)
    SparseDelta(delta_entries({n: w for n, w in weights.items() if w.dim() > 1}, density=0.05)).apply_(weights)
    verdict = compare(identity, weights)
    assert verdict.kind == FINE_TUNE and 0.85 < verdict.agreeing < 1


@given(
    st.one_of(
        st.text(max_size=60),
        st.tuples(st.sampled_from(["1:", "2:"]), st.binary(max_size=200)).map(
            lambda pair: pair[0] + base64.b64encode(pair[1]).decode()
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_verdict(text):
    assert compare({BASE_IDENTITY: text}, model(layers=3)).kind in (OTHER, UNKNOWN)


@pytest.mark.parametrize("value", [b"\0\x7c", b"\0\xfc", b"\x01\x7e"])  # inf, -inf, NaN in float16
def test_elements_that_are_no_numbers_are_left_out(value):
    content = bytearray(base64.b64decode(identity_of(model())[BASE_IDENTITY][2:]))
    content[5:7] = value
    text = "1:" + base64.b64encode(content).decode()
    assert compare({BASE_IDENTITY: text}, model()).kind == BASE


def test_one_layer_with_large_weights_does_not_decide():
    weights = model()
    loud = {**weights, PREFIX + "7.weight": torch.randn(24, 16) * 1e4}
    assert compare(identity_of(weights), loud).kind == FINE_TUNE
    assert compare(identity_of(loud), weights).kind == FINE_TUNE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_of_no_numbers_is_no_base(value):
    weights = model()
    broken = {name: weight * value for name, weight in weights.items()}
    assert compare(identity_of(weights), broken).kind == OTHER


def test_a_long_name_in_a_file_does_not_fill_the_node():
    metadata = {**identity_of(model()), BASE_NAME: "x" * 10_000}
    assert len(compare(metadata, tuned(model())).warning()) < 500


def test_an_identity_holds_512_records_of_13_bytes_and_a_longer_one_is_not_read():
    large = model(layers=600)
    content = base64.b64decode(identity_of(large)[BASE_IDENTITY].removeprefix("1:"))
    assert len(content) == 512 * 13
    for records, kind in ((content, BASE), (content + content[:13], UNKNOWN)):
        assert compare({BASE_IDENTITY: "1:" + base64.b64encode(records).decode()}, large).kind == kind


def identity_by_the_page(base, divided_by):
    """An independent writer, from docs/format.md with nothing but the standard library."""
    records = []
    for name, (dtype, shape) in base.items():
        elements = 1
        for side in shape:
            elements *= side
        if len(shape) < 2 or elements < 4:
            continue
        said = f"{name.removeprefix('diffusion_model.')} [{', '.join(map(str, shape))}]"
        digest = hashlib.blake2b(said.encode(), digest_size=12).digest()
        place = int.from_bytes(digest[4:], "little") % (elements - 3)
        values = (number / divided_by for number in range(place, place + 4))
        code = {"F64": 0, "F32": 1, "F16": 2, "BF16": 3}[dtype]
        records.append((int.from_bytes(digest[:4], "little"), code, struct.pack("<4e", *values)))
    return "1:" + base64.b64encode(b"".join(struct.pack("<IB", *r[:2]) + r[2] for r in sorted(records))).decode()


def test_the_vector_and_the_page_say_the_same_as_we_do():
    vector = json.loads(VECTOR.read_text(encoding="utf-8"))
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    weights = {
        name: (torch.arange(torch.Size(shape).numel()) / vector["divided_by"]).view(shape).to(dtypes[dtype])
        for name, (dtype, shape) in vector["base"].items()
    }
    assert vector["identity"] == identity_by_the_page(vector["base"], vector["divided_by"])
    assert vector["identity"] == identity_of(weights)[BASE_IDENTITY]


@pytest.mark.parametrize(
    "make, kind, words",
    [(lambda: cast(model(), torch.float16), BASE, "is the base"), (lambda: tuned(model()), FINE_TUNE, "is a fine-tune"),
     (lambda: model(width=32), OTHER, "of another family")],
)  # fmt: skip
def test_the_command_line_says_what_a_file_is_to_the_delta(tmp_path, capsys, make, kind, words):
    file, other = tmp_path / "delta.safetensors", tmp_path / "other.safetensors"
    entry = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (24, 16))
    SparseDelta({PREFIX + "0.weight": entry}, identity_of(model(), "base.safetensors")).save(file)
    save_file({f"model.{name}": weight for name, weight in make().items()}, other)
    assert main(["inspect", str(file), "--base", str(other)]) == 0
    assert words in capsys.readouterr().out.splitlines()[-1]
    assert main(["inspect", str(file), "--base", str(other), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["model"]
    assert said["kind"] == kind and said["file"] == other.name and said["base_name"] == "base.safetensors"


# In the host


@pytest.fixture
def host_model(comfy):
    from tests.support.toy_models import sd15_model, unload

    yield sd15_model()
    unload()


def of_pack(comfy, model, metadata):
    delta = comfy.pack_module("sara_core.delta")
    entries = {"diffusion_model.out.2.weight": delta_entries(model.model_state_dict())["diffusion_model.out.2.weight"]}
    return delta.SparseDelta(entries, metadata)


def test_a_model_on_which_a_delta_is_in_use_is_still_the_base(comfy, host_model):
    from tests.support.toy_models import loaded_weights

    identity = comfy.pack_module("nodes.host.identity")
    patching = comfy.pack_module("nodes.host.patching")
    metadata = identity.identity_metadata(host_model)
    entries = delta_entries({n: w for n, w in host_model.model_state_dict().items() if w.dim() > 1}, density=0.5)
    delta = comfy.pack_module("sara_core.delta").SparseDelta(entries, metadata)
    patched = patching.patch_model(host_model, delta, 1.0)
    weights = loaded_weights(patched)
    assert compare(metadata, weights).kind == FINE_TUNE  # the patches are in the weights now
    assert identity.remark(host_model, delta) == identity.remark(patched, delta) == ""


def test_a_model_prepared_for_training_is_still_the_base(comfy, host_model):
    identity = comfy.pack_module("nodes.host.identity")
    isolation = comfy.pack_module("nodes.host.training.isolation")
    before = identity.identity_metadata(host_model)
    with torch.inference_mode(False), isolation.training_model(host_model, {"density": 0.01}, (1, 4, 8, 8)) as training:
        assert identity.identity_metadata(training.patcher) == before


def test_the_loading_nodes_warn_of_another_fine_tune(comfy, host_model, caplog, monkeypatch):
    from tests.support.toy_models import sd15_model

    load, shown = comfy.pack_module("nodes.load"), []
    monkeypatch.setattr(load, "show_text", lambda node_class, text: shown.append(text))
    identity = comfy.pack_module("nodes.host.identity")
    delta = of_pack(comfy, host_model, identity.identity_metadata(host_model))
    comfy.execute("SaRAApply", model=host_model, delta=delta)
    assert not shown and "SaRA:" not in caplog.text
    comfy.execute("SaRAApply", model=sd15_model(seed=3), delta=delta)
    assert len(shown) == 1 and "nothing to do with" in shown[0] and shown[0] in caplog.text
    comfy.execute("SaRAApply", model=sd15_model(seed=3), delta=delta, strength=0.0)
    assert len(shown) == 1


def test_the_base_is_called_by_its_file(comfy, checkpoint):
    import comfy.sd as sd

    loaded = sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
    identity = comfy.pack_module("nodes.host.identity")
    assert identity.identity_metadata(loaded)[BASE_NAME] == checkpoint.name


@pytest.mark.parametrize("version, size", [("1:", 13), ("2:", 17)])
def test_no_more_records_are_read_than_an_identity_has(version, size):
    def text(count):
        return version + base64.b64encode(bytes(count * size)).decode()

    most = identity_module._MOST_WEIGHTS
    assert len(identity_module._read(text(most))) == most
    assert identity_module._read(text(most + 1)) is None
