"""SaRA Train on models in every precision: the run, what it leaves of the MODEL, and what its delta is worth."""

import pytest
import torch

from tests.nodes.precision.test_train_gradients import host_loss, trained as training_model
from tests.nodes.training.test_session import cancelled
from tests.support import quantised_models, toy_training
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload

KINDS = [kind for kind in quantised_models.KINDS if kind != "bf16"]
STEPS = 3


def inputs(family, count=2):
    latents = [{"samples": latent} for latent in LAYOUTS[family].latents(count)]
    return latents, [[caption] for caption in LAYOUTS[family].captions(count)]


def train(comfy, model, family, **settings):
    latents, captions = inputs(family)
    settings = {"steps": STEPS, "density": 2.0, "learning_rate": 1e-3, **settings}
    return comfy.execute("SaRATrain", model=model, latents=latents, positive=captions, **settings).outputs


def contents(model):
    """Every tensor of a MODEL by its name, with its bytes, scales and whatever else it is made of."""
    found = {}
    for name, tensor in [*model.model.named_parameters(), *model.model.named_buffers()]:
        found[name] = [tensor, *(part.clone() for part in parts(tensor))]
    return found


def parts(tensor):
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return [tensor.detach().as_subclass(torch.Tensor)]


def assert_untouched(model, before):
    now = dict([*model.model.named_parameters(), *model.model.named_buffers()])
    assert now.keys() == before.keys()
    for name, (original, *copies) in before.items():
        assert now[name] is original, name
        for part, copy in zip(parts(original), copies, strict=True):
            assert torch.equal(as_bytes(part), as_bytes(copy)), name


def as_bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def dense_model(kind, family):
    """The fp32 MODEL that files of this kind are dequantised to."""
    import comfy.sd

    weights = quantised_models.references(kind, family)
    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


def loaded(model):
    import comfy.model_management

    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
    return model


@pytest.fixture(autouse=True)
def nothing_left_loaded(comfy):
    yield
    unload()


DENSE_TOO = ("fp8 scaled by 1", "nvfp4", "GGUF Q4_K")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DENSE_TOO])
def test_every_precision_trains_and_stays_as_it_was(comfy, tmp_path, kind):
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        before = contents(model)
        delta, _ = train(comfy, model, "Flux", steps=1)
        assert_untouched(model, before)
    assert delta.nnz


@pytest.mark.parametrize("kind", DENSE_TOO)
def test_a_run_learns_what_one_on_the_dequantised_model_learns(comfy, tmp_path, kind):
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        dense = dense_model(kind, "Flux")
        before = contents(model)
        found, losses = train(comfy, model, "Flux")
        assert_untouched(model, before)
        expected, dense_losses = train(comfy, dense, "Flux")
    assert losses["loss"] == pytest.approx(dense_losses["loss"], rel=1e-4)
    assert found.entries.keys() == expected.entries.keys()
    for name, entry in expected.entries.items():
        assert torch.equal(found.entries[name].indices, entry.indices), name
        assert (found.entries[name].values - entry.values).norm() <= 1e-2 * entry.values.norm(), name


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, Cancelled])
@pytest.mark.parametrize("kind", ["fp8 e4m3", "nvfp4", "GGUF Q4_0"])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(comfy, tmp_path, monkeypatch, kind, error):
    store = comfy.pack_module("sara_core.backward.store").Store
    take, calls = store.take, []

    def failing(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise error("stopped")
        take(self, *args)

    monkeypatch.setattr(store, "take", failing)
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        before = contents(model)
        kinds = [type(part) for part in model.model.modules()]
        with pytest.raises(BaseException, match="stopped"):
            train(comfy, model, "Flux")
        assert_untouched(model, before)
    assert [type(part) for part in model.model.modules()] == kinds


@pytest.mark.parametrize("kind", ["fp8 scaled", "nvfp4", "GGUF Q4_0"])
def test_a_run_resumes_where_it_was_cancelled(comfy, tmp_path, kind):
    options, folder = {"steps": 4, "density": 2.0, "snapshot_every": 0}, comfy.base / "output" / "sara_snapshots"
    data = inputs("Flux")
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        whole, losses = toy_training.train(comfy, model, data, **options)
        present = set(folder.glob("*"))
        cancelled(comfy, model, data, 2, **options)
        snapshot, = set(folder.glob("*")) - present
        resumed, resumed_losses = toy_training.train(comfy, model, data, **options, resume=snapshot.name)
    assert resumed_losses["loss"] == losses["loss"]
    for name, entry in whole.entries.items():
        assert torch.equal(resumed.entries[name].values, entry.values), name


KEY = "diffusion_model.double_blocks.0.img_mlp.2.weight"


@pytest.mark.parametrize("way", ["patch", "wrapper"])
@pytest.mark.parametrize("kind", ["fp8 e4m3", "fp8 scaled by 1", "nvfp4", "GGUF Q4_0"])
def test_training_computes_with_what_other_nodes_have_put_on_the_model(comfy, tmp_path, kind, way):
    """A patch that the host writes into the weight, as of a LoRA, and a function that it calls for each use."""
    if way == "wrapper" and kind.startswith("GGUF"):
        pytest.skip("layers of the pack call no weight functions")
    with torch.inference_mode():
        model = quantised_models.model(kind, "Flux", tmp_path)
        without = host_loss(comfy, loaded(model.clone()), LAYOUTS["Flux"])
        change = 0.1 * torch.randn(model.model.get_submodule(KEY.removesuffix(".weight")).weight.shape)
        if way == "patch":
            model.add_patches({KEY: ("diff", (change,))}, 1.0)
        else:
            model.add_weight_wrapper(KEY, lambda weight: weight + change.to(weight.dtype))
        loaded(model)
        before = contents(model)
    with torch.inference_mode(False), torch.no_grad():
        expected = host_loss(comfy, model, LAYOUTS["Flux"])
        with training_model(comfy, model, "Flux") as training:
            assert torch.allclose(host_loss(comfy, training.patcher, LAYOUTS["Flux"]), expected, rtol=1e-5)
    assert_untouched(model, before)
    assert not torch.allclose(without, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fp8 scaled", "nvfp4", "int8", "GGUF Q4_0"])
def test_a_training_goes_on_after_a_picture_was_drawn_and_the_model_unloaded(comfy, tmp_path, kind):
    """Outside of inference mode, in which a training computes, the host cannot load such layers again."""
    with torch.inference_mode():
        model = quantised_models.model(kind, "Flux", tmp_path)
    with torch.inference_mode(False), training_model(comfy, model, "Flux") as training:
        before = host_loss(comfy, training.patcher, LAYOUTS["Flux"])
        with torch.inference_mode():  # as pictures are drawn, which may need the whole memory
            quantised_models.output(training.patcher, "Flux")
            unload()
        training.reload()
        after = host_loss(comfy, training.patcher, LAYOUTS["Flux"])
        assert torch.equal(after, before)
        after.backward()
        assert training.store.values.grad.norm() > 0
