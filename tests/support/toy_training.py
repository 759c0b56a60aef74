"""Training the toy model through the real SaRATrain node, and what must be untouched afterwards."""

import pytest
import torch

from tests.support import toy_models

IMAGES = 3


@pytest.fixture(scope="module")
def model(comfy):
    import comfy.model_management

    with torch.inference_mode():  # as the host makes and loads models inside a prompt
        model = toy_models.sd15_model()
        comfy.model_management.load_models_gpu([model])
    return model


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    latents = [{"samples": torch.randn(1, 4, 8, 8, generator=generator)} for _ in range(IMAGES)]
    captions = [[[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(IMAGES)]
    return latents, captions


@pytest.fixture
def untouched(model):
    """Fails if a test leaves any tensor, class or forward of the shared MODEL changed."""
    module = model.model
    tensors = {name: (tensor, tensor.clone()) for name, tensor in module.state_dict(keep_vars=True).items()}
    modules = [(part, type(part), set(part.__dict__), set(part._parameters)) for part in module.modules()]
    yield
    now = module.state_dict(keep_vars=True)
    assert now.keys() == tensors.keys()
    for name, (original, copy) in tensors.items():
        assert now[name] is original, name
        assert torch.equal(original.view(torch.uint8), copy.view(torch.uint8)), name
    assert [(part, type(part), set(part.__dict__), set(part._parameters)) for part in module.modules()] == modules


@pytest.fixture
def output(comfy, tmp_path, monkeypatch):
    """An output folder of the test's own."""
    monkeypatch.setattr(comfy.folder_paths, "output_directory", str(tmp_path / "output"))
    (tmp_path / "output" / "sara").mkdir(parents=True)
    return tmp_path / "output"


def train(comfy, model, data, **settings):
    """SaRATrain's outputs; settings of SaRATrainOptions go through that node."""
    latents, captions = data
    settings = {"steps": 2, "density": 1.0, "learning_rate": 1e-3, **settings}
    kinds = comfy.node_class("SaRATrainOptions").INPUT_TYPES()
    names = {name for kind in kinds.values() for name in kind}
    options = {name: settings.pop(name) for name in list(settings) if name in names}
    if options:
        settings["options"], = comfy.execute("SaRATrainOptions", **options).outputs
    return comfy.execute("SaRATrain", model=model, latents=latents, positive=captions, **settings).outputs


def denoising_loss(comfy, model, samples, batch_size, seed=0, **options):
    """The losses that the node trains a loaded MODEL with, over prepared samples."""
    denoiser = comfy.pack_module("nodes.host.training.denoiser").Denoiser(model)
    network = comfy.pack_module("nodes.host.training.network").HostNetwork(denoiser)
    return comfy.pack_module("sara_core.data.denoising_loss").DenoisingLoss(
        network, samples, batch_size, seed, **options
    )


def saved_deltas(comfy):
    return set((comfy.base / "output" / "sara").glob("*.safetensors"))
