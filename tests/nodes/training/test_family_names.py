"""What users read a model's family as, and that deltas which say an earlier name are not taken for another family's."""

import pytest
import torch

from sara_core import SparseDelta, merge
from sara_core.delta.modelspec import architecture
from sara_core.errors import DeltaError
from sara_core.names.families import FAMILIES
from sara_core.names.family_names import FORMER_NAMES, layout_name
from tests.support.family_models import WAN_LAYOUT


def host_model(config: str, **layout):
    """What of a MODEL its family is told by."""
    settings = type(config, (), {"unet_config": layout})()
    return type("Patcher", (), {"model": type("Model", (), {"model_config": settings})()})()


@pytest.fixture
def family(comfy):
    return comfy.pack_module("nodes.host.family")


def test_every_class_of_the_host_has_a_name_that_is_none_of_its_own(comfy, family):
    from comfy import supported_models

    registered = {config.__name__ for config in supported_models.models}
    assert not registered - family.NAMES.keys()
    assert not any("_" in name for name in family.NAMES.values())


def test_a_class_that_nobody_has_named_is_called_by_its_own_words(family):
    assert family.model_family(host_model("NextVideo2_T2V")) == "Next Video 2 T2V"


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ({**WAN_LAYOUT, "in_dim": 16}, "Wan 2.1"),
        ({**WAN_LAYOUT, "in_dim": 16, "dim": 1536}, "Wan 2.1"),
        ({**WAN_LAYOUT, "in_dim": 16, "dim": 5120}, "Wan 2.1 / 2.2 A14B"),
        ({**WAN_LAYOUT, "in_dim": 36, "dim": 5120}, "Wan 2.2 A14B"),
        ({**WAN_LAYOUT, "in_dim": 52, "dim": 5120}, "Wan 2.2 A14B"),
    ],
)
def test_wan_2_2_is_told_from_2_1_where_its_layers_tell(family, layout, name):
    assert family.model_family(host_model("WAN21_T2V", **layout)) == name


def test_the_host_knows_wan_2_2_image_to_video_by_the_class_of_text_to_video(comfy):
    """Which is why its layout has to tell."""
    from comfy.ldm.wan.model import WanModel
    from comfy.model_detection import model_config_from_unet

    from tests.support.family_models import random_state_dict, transformer

    weights = random_state_dict(lambda: transformer(WanModel, {**WAN_LAYOUT, "in_dim": 36}))
    config = model_config_from_unet(weights, "")
    assert type(config).__name__ == "WAN21_T2V" and config.unet_config["in_dim"] == 36


def delta_of(family: str) -> SparseDelta:
    entry = (torch.tensor([0], dtype=torch.int32), torch.ones(1), (2, 3))
    return SparseDelta({"diffusion_model.layer.weight": entry}, {"sara.family": family})


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ("WAN21_HuMo", "HuMo", "HuMo"),
        ("CosmosT2V", "CosmosI2V", "Cosmos 1"),
        ("Wan 2.1", "Wan 2.2 A14B", "Wan 2.1"),
        ("Wan 2.2 A14B", "Wan 2.2 A14B", "Wan 2.2 A14B"),
    ],
)
def test_deltas_of_one_family_under_two_names_are_merged(first, second, merged):
    assert merge([delta_of(first), delta_of(second)], [1.0, 1.0]).metadata["sara.family"] == merged


def test_deltas_of_two_families_are_not():
    with pytest.raises(DeltaError, match="is for HuMo.*is for SCAIL"):
        merge([delta_of("HuMo"), delta_of("SCAIL")], [1.0, 1.0])


def test_an_earlier_name_is_read_as_the_one_of_today(family):
    assert family.delta_family({"sara.family": "WAN21_HuMo"}) == "HuMo"
    assert family.delta_family({}) is None
    assert family.delta_family({"sara.family": "of the future"}) == "of the future"


def test_no_new_name_is_an_earlier_one_of_another_family():
    assert not FORMER_NAMES.keys() & (set(FORMER_NAMES.values()) | set(FAMILIES))


def test_model_browsers_get_an_identifier_of_one_word_before_the_slash():
    for name in [*FORMER_NAMES.values(), "Wan 2.1 / 2.2 A14B"]:
        identifier, _, kind = architecture(name).partition("/")
        assert kind == "sara" and " " not in identifier and identifier == identifier.lower()


def test_wan_is_an_architecture_of_its_own_as_before():
    assert architecture("Wan 2.1 / 2.2 A14B") == architecture("Wan 2.2 A14B") == architecture("Wan 2.1")
    assert layout_name("Wan 2.2") == "Wan 2.2"
