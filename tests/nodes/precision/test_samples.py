"""SaRA Train Samples of quantised models: each picture is drawn, also where the VAE before it took the whole memory."""

import pytest
import torch

from tests.nodes.precision.test_train_node import inputs, loaded
from tests.support import quantised_models
from tests.support.quantised_models import LAYOUTS
from tests.support.toy_models import unload
from tests.support.toy_training import output, train  # noqa: F401 (fixture)


class GreedyVae:
    """A VAE for whose sake the host drives a MODEL out of memory: off the GPU, so that each tensor is a new one."""

    latent_channels = 16

    def __init__(self, model):
        self.model, self.latents = model, []

    def decode(self, latent):
        self.latents.append(latent.clone())
        unload()
        self.model.model._apply(lambda tensor: tensor.clone())
        return torch.zeros(1, 8, 8, 3)


@pytest.mark.parametrize("kind", ["bf16", "fp8 scaled", "nvfp4", "int8", "GGUF Q4_0"])
def test_pictures_are_drawn_though_the_host_moves_the_model(comfy, tmp_path, output, caplog, kind):  # noqa: F811
    captions = [list(caption) for caption in LAYOUTS["Flux"].captions(2)]
    with torch.inference_mode():
        model = loaded(quantised_models.model(kind, "Flux", tmp_path))
        vae = GreedyVae(model)
        before = quantised_models.output(model, "Flux")
        samples, = comfy.execute("SaRATrainSamples", positive=[captions], vae=vae, every=1, steps=2).outputs
        delta, _ = train(comfy, model, inputs("Flux"), samples=samples, learning_rate=0.05)
        assert torch.equal(quantised_models.output(model, "Flux"), before)
        unload()
    assert delta.nnz and "without the pictures" not in caplog.text
    assert len(list((output / "sara_samples").rglob("step_*.png"))) == len(vae.latents) == 6
    first, last = vae.latents[0], vae.latents[4]
    assert first.isfinite().all() and not torch.equal(first, last)
