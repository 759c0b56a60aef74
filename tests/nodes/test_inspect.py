"""What SaRA Inspect says of deltas and models, against counting it the obvious way."""

import json

import pytest
import torch

from sara_core import SparseDelta, SparseEntry
from sara_core.delta.describe import density_by_block, describe, file_size
from sara_core.models.survey import THETAS, WeightSurvey
from tests.support.family_models import FAMILIES
from tests.support.pictures import assert_is_picture
from tests.support.toy_models import assert_same_bits, sd15_model, unload


def random_delta(density, shape=(1000, 1000)):
    count = round(shape[0] * shape[1] * density)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(shape[0] * shape[1], generator=generator)[:count].sort().values.to(torch.int32)
    return SparseDelta({"diffusion_model.a.0.weight": SparseEntry(positions, torch.randn(count), shape)})


@pytest.mark.parametrize("dtype, value_bytes", [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.05, 0.2])
def test_the_file_size_is_foretold_within_three_per_cent(tmp_path, density, dtype, value_bytes):
    delta, path = random_delta(density), tmp_path / "delta.safetensors"
    delta.save(path, dtype)
    assert file_size(delta.nnz, density, 1, value_bytes) == pytest.approx(path.stat().st_size, rel=0.03)


def test_a_delta_says_what_it_is():
    delta = random_delta(0.01)
    delta.metadata.update({
        "modelspec.trigger_phrase": "ink style", "sara.family": "SD1.5", "sara.base": "ab12", "other": "[1, 2]",
        "sara.training": json.dumps({"steps": 500, "learning_rate": 1e-4}), "sara.selection": "no json",
    })  # fmt: skip
    facts = describe(delta)
    assert (facts.elements, facts.weights, facts.density, facts.value_dtype) == (10_000, 1, 0.01, "float32")
    assert facts.settings == {
        "trigger": "ink style", "family": "SD1.5", "base fingerprint": "ab12", "selection": "no json",
        "training": "steps 500, learning_rate 0.0001", "other": "[1, 2]",
    }  # fmt: skip
    assert "ink style" in facts.text() and "a.0" in facts.text()
    assert json.loads(json.dumps(facts.as_dict()))["blocks"]["a.0"]["count"] == 10_000


def test_metadata_made_to_break_a_reader_is_shown_in_part():
    delta = random_delta(0.001)
    delta.metadata["sara.training"] = "[" * 100_000
    delta.metadata["sara.merge"] = '{"a":' * 400 + "1" + "}" * 400
    facts = describe(delta)
    assert facts.settings["training"] == "[" * 100_000 and len(facts.text()) < 2_000


def test_blocks_are_counted_together():
    one = SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([3.0]), (2, 5))
    two = SparseEntry(torch.tensor([0, 4], dtype=torch.int32), torch.tensor([0.0, 4.0]), (10,))
    blocks = density_by_block(SparseDelta({"b.10.x.weight": one, "b.9.y.weight": one, "b.10.z.bias": two}))
    assert list(blocks) == ["b.9", "b.10"]
    assert (blocks["b.10"].count, blocks["b.10"].of, blocks["b.10"].density) == (3, 20, 0.15)
    assert blocks["b.10"].strength == pytest.approx((25 / 3) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_survey_counts_what_lies_below_each_theta(dtype):
    generator = torch.Generator().manual_seed(3)
    weights = {f"{n}": (torch.randn(70, 50, generator=generator) * 10.0**-n).to(dtype) for n in range(4)}
    weights["0"][0, 0] = 0.002  # not below θ in fp32
    survey = WeightSurvey(weights)
    everything = torch.cat([weight.view(-1).float() for weight in weights.values()])
    rows = {row.theta: row for row in survey.rows()}
    assert len(rows) > 40
    for theta in THETAS:
        below = everything[everything.abs() < theta]
        if 0 < len(below) < len(everything):
            row = rows.pop(theta)
            assert row.elements == len(below) and row.density == len(below) / len(everything)
            assert row.zeroed == pytest.approx(float(below.double().norm() / everything.double().norm()), rel=1e-6)
            assert row.training_bytes == 28 * len(below)
    assert not rows
    text = survey.text()
    assert "0.002" in text and all(f"{column}:" in text for column in ("file", "training", "zeroed"))


# --- the node


@pytest.fixture
def model(comfy):
    made = sd15_model()
    yield made
    unload()


def sampled(comfy, model, **inputs):
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    conditioning = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    result = comfy.execute(
        "KSampler", model=model, seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal",
        positive=conditioning, negative=conditioning, latent_image=latent, denoise=1.0,
    )  # fmt: skip
    return result.outputs[0]["samples"]


def layer_weights(model):
    return {n: w for n, w in model.model.state_dict().items() if n.startswith("diffusion_model") and w.dim() > 1}


def test_the_zeroed_model_draws_as_if_its_small_weights_were_zero(comfy, model):
    theta = 0.01
    before, plain = {n: w.clone() for n, w in model.model.state_dict().items()}, sampled(comfy, model)
    zeroed = comfy.execute("SaRAInspect", model=model, threshold=theta).outputs[2]
    drawn = sampled(comfy, zeroed)
    assert_same_bits(dict(model.model.state_dict()), before)
    assert torch.equal(sampled(comfy, model), plain)
    other = sd15_model()
    with torch.inference_mode():
        for weight in layer_weights(other).values():
            weight[weight.abs() < theta] = 0
    assert torch.equal(drawn, sampled(comfy, other)) and not torch.equal(drawn, plain)


def test_a_model_is_reported_with_table_and_curves(comfy, model):
    report, picture, _ = comfy.execute("SaRAInspect", model=model, threshold=0.002).outputs
    weights = layer_weights(model)
    below = sum(int((weight.abs() < 0.002).sum()) for weight in weights.values())
    (row,) = [line.split() for line in report.splitlines() if line.split()[:1] == ["0.002"]]
    assert row[1] == f"{below:,}"
    assert f"in {len(weights)} Linear and Conv weights" in report and "prediction" not in report
    assert_is_picture(picture)


def test_patches_on_the_model_do_not_count_as_its_weights(comfy, model):
    plain = comfy.execute("SaRAInspect", model=model).outputs[0]
    classes, name = comfy.pack_module("sara_core.delta"), "diffusion_model.out.2.weight"
    size = layer_weights(model)[name].numel()
    entry = classes.SparseEntry(
        torch.arange(size, dtype=torch.int32), torch.ones(size), tuple(layer_weights(model)[name].shape)
    )
    patched = comfy.execute("SaRAApply", model=model, delta=classes.SparseDelta({name: entry})).outputs[0]
    sampled(comfy, patched)  # loads it, with the patch in its weight
    assert comfy.execute("SaRAInspect", model=patched).outputs[0] == plain


def test_the_prediction_is_measured_where_a_picture_and_a_prompt_are_connected(comfy, model):
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    positive = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    before = {n: w.clone() for n, w in model.model.state_dict().items()}
    report, picture, _ = comfy.execute("SaRAInspect", model=model, positive=positive, latent=latent).outputs
    changes = [float(line.split()[-1].rstrip("%")) for line in report.splitlines() if line.endswith("%")]
    assert len(changes) > 5 and changes[0] < 5 < changes[-1]
    assert_is_picture(picture)
    unload()
    assert_same_bits(dict(model.model.state_dict()), before)


def test_the_measured_change_is_that_of_a_model_with_zeros(comfy, model):
    """Against predictions of a model whose weights were set to zero for good."""
    zeroing = comfy.pack_module("nodes.host.zeroing")
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))}
    positive = [[torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(1)), {}]]
    with torch.inference_mode():
        measured = zeroing.prediction_changes(model, [0.02], positive, latent, lambda: None)[0.02]
        unload()
        expected = _change_by_hand(model, 0.02, positive, latent)
    assert measured == pytest.approx(expected, rel=1e-4)


def _change_by_hand(model, theta, positive, latent):
    import comfy.model_management
    import comfy.sample

    other = sd15_model()
    for weight in layer_weights(other).values():
        weight[weight.abs() < theta] = 0
    noise = comfy.sample.prepare_noise(latent["samples"], 0)
    changes = []
    for position in (0.2, 0.5, 0.8):
        outputs = []
        for one in (model, other):
            comfy.model_management.load_models_gpu([one])
            sampling = one.model.model_sampling
            sigma = sampling.sigmas[int(position * 999)].view(1)
            clean = one.model.process_latent_in(latent["samples"])
            noisy = sampling.noise_scaling(sigma, noise, clean, False)
            network = one.model.diffusion_model
            outputs.append(network(sampling.calculate_input(sigma, noisy), sampling.timestep(sigma), positive[0][0]))
        changes.append(float((outputs[1] - outputs[0]).norm() / outputs[0].norm()))
    return sum(changes) / len(changes)


def test_a_delta_and_a_model_are_shown_together(comfy, model):
    classes = comfy.pack_module("sara_core.delta")
    entry = next(iter(random_delta(0.01).entries.values()))
    delta = classes.SparseDelta({"diffusion_model.a.0.weight": classes.SparseEntry(*entry)}, {"sara.family": "SD1.5"})
    report, picture, blocked = comfy.execute("SaRAInspect", delta=delta).outputs
    assert "10,000 changes" in report and "SD1.5" in report
    assert type(blocked).__name__ == "ExecutionBlocker"
    both, larger, _ = comfy.execute("SaRAInspect", delta=delta, model=model).outputs
    assert both.startswith(report) and larger.shape[1] > picture.shape[1]


def test_nothing_or_half_is_refused(comfy, model):
    error = comfy.pack_module("sara_core.errors").SelectionError
    with pytest.raises(error, match="connect a delta"):
        comfy.execute("SaRAInspect")
    with pytest.raises(error, match="both positive and latent"):
        comfy.execute("SaRAInspect", model=model, latent={"samples": torch.zeros(1, 4, 8, 8)})


# --- a delta and a model: is it the base?


def trained_on(comfy, model, name="base.safetensors"):
    """A small delta with what SaRA Train says of this MODEL."""
    classes, identity = comfy.pack_module("sara_core.delta"), comfy.pack_module("nodes.host.identity")
    entry = classes.SparseEntry(torch.tensor([1], dtype=torch.int32), torch.ones(1), (4, 320, 3, 3))
    metadata = {**identity.identity_metadata(model), "sara.base_name": name}
    return classes.SparseDelta({"diffusion_model.out.2.weight": entry}, metadata)


def said_of(comfy, delta, model):
    """The paragraph of the report that is about both."""
    alone = comfy.execute("SaRAInspect", delta=delta).outputs[0]
    report = comfy.execute("SaRAInspect", delta=delta, model=model).outputs[0]
    assert report.startswith(alone)
    return report.removeprefix(alone).strip().splitlines()[0]


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_base_is_recognised_in_whatever_precision(comfy, model, dtype):
    assert said_of(comfy, trained_on(comfy, model), sd15_model(dtype=dtype)) == (
        "This model is the base that the delta was trained on ('base.safetensors'), in this precision or another."
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_lora_on_the_base_does_not_make_it_another_model(comfy, model, dtype):
    delta, base = trained_on(comfy, model), sd15_model(dtype=dtype)
    lora = {
        f"{name}.{part}": torch.randn(shape) * 0.1
        for name, weight in layer_weights(base).items() if weight.dim() == 2
        for part, shape in (("lora_up", (len(weight), 2)), ("lora_down", (2, weight.shape[1])))
    }  # fmt: skip
    lora = {name.replace(".weight.", ".") + ".weight": tensor for name, tensor in lora.items()}
    import comfy.sd as sd

    patched = sd.load_lora_for_models(base, None, lora, 1.0, 1.0)[0]
    assert patched.patches
    assert said_of(comfy, delta, patched).startswith("This model is the base")
    before = next(iter(patched.patches))
    kept = base.model.state_dict()[before].clone()
    sampled(comfy, patched)  # now the LoRA is in the weights
    assert not torch.equal(base.model.state_dict()[before], kept)
    assert said_of(comfy, delta, patched).startswith("This model is the base")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fine_tune_is_told_from_the_base(comfy, model, dtype):
    delta, other = trained_on(comfy, model), sd15_model(dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        for weight in layer_weights(other).values():
            weight += (torch.randn(weight.shape, generator=generator) * 0.02 * float(weight.float().std())).to(dtype)
    said = said_of(comfy, delta, other)
    assert said.startswith("This model is a fine-tune.") and "'base.safetensors'" in said


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_another_family_and_an_unrelated_model_are_told_from_a_fine_tune(comfy, model, dtype):
    delta = trained_on(comfy, model)
    assert said_of(comfy, delta, sd15_model(seed=9, dtype=dtype)).startswith("This model is of another family, or was")
    sd3 = FAMILIES["SD3"].model(dtype=dtype)
    assert said_of(comfy, delta, sd3).startswith("This model is of another family, or was")


def test_a_delta_that_does_not_say_its_base_is_not_guessed_at(comfy, model):
    delta = trained_on(comfy, model)
    delta.metadata.clear()
    assert "is not known" in said_of(comfy, delta, model)


def test_the_node_shows_what_the_model_is_to_the_delta(comfy, model, monkeypatch):
    lines = []
    monkeypatch.setattr(comfy.pack_module("nodes.inspect"), "show_text", lambda node_class, text: lines.append(text))
    comfy.execute("SaRAInspect", delta=trained_on(comfy, model), model=model)
    assert "1 changes in 1 weights" in lines[0] and "This model is the base" in lines[0]


HOSTILE = "<img src=x onerror=alert(1)>[[safe|https://x.example]] [label](https://x.example)\x1b[31m\u202e\nfake: line"


def hostile_delta(comfy):
    """A delta, of the host's class, of whose every word a page would make something."""
    classes = comfy.pack_module("sara_core.delta")
    entry = classes.SparseEntry(torch.tensor([1], dtype=torch.int32), torch.tensor([3.0]), (2, 5))
    keys = ["modelspec.title", "modelspec.author", "sara.base_name", "sara.family", "sara.training", HOSTILE]
    return classes.SparseDelta({f"{HOSTILE}.weight": entry}, dict.fromkeys(keys, HOSTILE))


def is_plain(text):
    return not any(sign in text for sign in ("<img", "[[", "](", "\x1b", "\u202e", "\nfake"))


def test_what_a_file_says_is_text_on_every_node(comfy, model, monkeypatch):
    said = []

    class Page:
        def send_progress_text(self, text, node_id):
            said.append(text)

    progress = comfy.pack_module("nodes.host.progress")
    monkeypatch.setattr(progress.PromptServer, "instance", Page(), raising=False)
    monkeypatch.setattr(progress, "_node_id", lambda node_class: "1")
    delta = hostile_delta(comfy)
    report, *_ = comfy.execute("SaRAInspect", delta=delta, model=model).outputs
    _, merged, _ = comfy.execute("SaRAMerge", **{"deltas.delta_1": delta, "deltas.delta_2": delta}).outputs
    converted = comfy.execute("SaRAConvert", file_name="none", base_name="none", to="lora", delta=delta)
    texts = [report, merged, converted.outputs[1], *converted.ui["text"], *said]
    assert len(said) >= 3 and all(map(is_plain, texts))
    assert "fake: line" in report and "fake: line" in merged

    with pytest.raises(Exception, match="This delta is for") as error:
        comfy.execute("SaRAApply", model=model, delta=delta)
    assert is_plain(str(error.value))
