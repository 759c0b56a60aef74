"""What a delta says of the model that it was trained on, and the names that its file has for the weights."""

from sara_core.delta import SparseDelta
from sara_core.delta import metadata as keys
from sara_core.diffusers_bridge import comfyui_delta, identity_metadata
from sara_core.models.identity import identity_of
from sara_core.names.outline import outline_of
from sara_core.names.resolve import PREFIX

from .host import TrainedModel


def about_base(model: TrainedModel) -> dict[str, str]:
    """Metadata; to be asked for before the training."""
    if model.has_diffusers_names:
        return identity_metadata(model.unet, model.name)  # its family is said by those who name its weights
    weights = {f"{PREFIX}{name}": weight.detach() for name, weight in model.unet.state_dict().items()}
    family = outline_of({name.removeprefix(PREFIX): tuple(weight.shape) for name, weight in weights.items()}).family
    return {**identity_of(weights, model.name), **({keys.FAMILY: family} if family else {})}


def by_comfyuis_names(model: TrainedModel, delta: SparseDelta) -> SparseDelta:
    """The delta as its file has it. delta: by the UNet's own names, behind ComfyUI's prefix"""
    if not model.has_diffusers_names:
        return delta
    entries = {name.removeprefix(PREFIX): entry for name, entry in delta.entries.items()}
    return comfyui_delta(model.unet, SparseDelta(entries, delta.metadata))
