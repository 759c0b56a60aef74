"""SaRA Train's noise range: what a model is given by itself, and that only those levels are trained."""

from types import SimpleNamespace

import pytest

from sara_core.data.noise_levels import FLOOR_OF_X0


@pytest.fixture
def found(comfy):
    module = comfy.pack_module("nodes.host.training.noise_range")

    def ask(network=(), kind=object, **inputs):
        model = SimpleNamespace(model=kind())
        model.model.diffusion_model = SimpleNamespace(**dict.fromkeys(network))
        usual = {"noise_range": "automatic", "noise_from": 0.0, "noise_to": 0.0}
        return module.host_noise_range({**usual, **inputs, "model": model})

    return ask


class HiDreamO1:
    """Of the host's name."""


class Another:
    """Any model."""


@pytest.mark.parametrize("model", [{"network": ["__x0__"], "kind": Another}, {"kind": HiDreamO1}])
def test_models_that_say_the_clean_picture_have_a_floor_which_the_log_says(found, caplog, model):
    caplog.set_level("INFO")
    assert found(**model) == (FLOOR_OF_X0, 0.0) and "0.05 is not trained" in caplog.text
    caplog.clear()
    assert found(**model, noise_range="all") == (0.0, 0.0)
    assert found(**model, noise_from=0.01) == (0.01, 0.0) and not caplog.text


def test_others_are_trained_at_all_levels(found, caplog):
    caplog.set_level("INFO")
    assert found(kind=Another) == (0.0, 0.0) and not caplog.text
    assert found(kind=Another, noise_range="Wan 2.2 I2V low noise") == (0.0, 0.9)
