"""The text encoders of a CLIP while they are trained: captions as text → what the host makes of them, with graph."""

import math
from collections.abc import Iterable, Iterator

import torch

from ....sara_core.errors import UnsupportedModelError
from ....sara_core.names.text_encoders import CLIP_G, CLIP_H, CLIP_L, TEXT_PREFIX, encoders_of, titles_of
from ....sara_core.wording import Sentence

TRAINABLE = frozenset((CLIP_L, CLIP_G, CLIP_H))
# Of the training of CLIP itself: encoding a caption does not use it.
_NEVER_USED = ".logit_scale"


class EncodersInTraining:
    """A CLIP that encodes in the middle of a training: loaded once, with the MODEL, and never moved by its own wish.

    clip: as it comes off the wire; it is left as it was
    patcher: of its encoders, with weights that may be written; model: the MODEL's, on whose device they compute

    Raises UnsupportedModelError, by name, for text encoders that are not trained, and for hooks.
    """

    def __init__(self, clip, patcher, model):
        check_trainable_clip(clip)
        if patcher.load_device != model.load_device:
            patcher = patcher.clone()
            patcher.load_device = model.load_device
        self.patcher, self.clip = patcher, clip.clone()
        self.clip.patcher, self.clip.cond_stage_model = patcher, patcher.model
        # The host would make room for it before each caption, by moving the MODEL out of the way.
        self.clip.load_model = lambda tokens={}: patcher

    def encoded(self, text: str) -> list:
        """CONDITIONING entry [tensor, options] of a caption, as CLIP Text Encode makes it."""
        (entry,) = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text), show_pbar=False)
        return entry

    def all_encoded(self, texts: Iterable[str]) -> dict[str, list]:
        """Text → its CONDITIONING entry; each of equal texts is encoded once."""
        return {text: self.encoded(text) for text in dict.fromkeys(texts)}


    def uses(self, name: str, unused: Iterable[str]) -> bool:
        """Whether a weight of this name, in a delta, has a part in the captions; unused: as from `unused_parts`"""
        return not name.startswith(tuple(unused)) and not name.endswith(_NEVER_USED)

    @torch.no_grad()
    def unused_parts(self, model) -> list[str]:
        """What a delta's names begin with of those weights that have no part in what the captions give the MODEL: of
        layers behind the one that is read, and of the projection where the MODEL takes nothing projected. A checkpoint
        need not have them, and then the host leaves in them whatever the memory held.

        To be called with the encoders loaded.
        """
        pooled_counts = bool(getattr(model.model, "adm_channels", 0))
        return [f"{TEXT_PREFIX}{name}." for name in self._unused(pooled_counts)]

    def _unused(self, pooled_counts: bool) -> Iterator[str]:
        for name, encoder in self.patcher.model.named_children():
            projection = f"{name}.transformer.text_projection"
            if not self._counts(projection, pooled_counts):
                yield projection
            for number in reversed(range(encoder.num_layers)):
                layer = f"{name}.transformer.text_model.encoder.layers.{number}"
                if self._counts(layer, pooled_counts):
                    break
                yield layer

    def _counts(self, name: str, pooled_counts: bool) -> bool:
        """Whether a caption shows it if what a module gives are no numbers."""
        module = self.patcher.model.get_submodule(name)
        hook = module.register_forward_hook(lambda module, given, output: output * math.nan)
        try:
            tensor, options = self.encoded("")
        finally:
            hook.remove()
        pooled = options.get("pooled_output")
        return bool(tensor.isnan().any()) or (pooled_counts and pooled is not None and bool(pooled.isnan().any()))


def check_trainable_clip(clip) -> None:
    """Raise UnsupportedModelError, naming it, if a CLIP has a text encoder that is not trained, or hooks."""
    names = [TEXT_PREFIX + key for key in clip.patcher.model_state_dict()]
    others = set(encoders_of(names)) - TRAINABLE
    if others:
        raise UnsupportedModelError(Sentence(
            "This CLIP has {encoders}, which SaRA does not train: it trains CLIP-L and CLIP-G, the text encoders "
            "of SD1.5 and SDXL. Choose 'diffusion model' under 'train' of SaRA Train Options, and disconnect "
            "'clip' and 'captions'.", encoders=titles_of([f'{TEXT_PREFIX}{name}.' for name in others]),
        ))  # fmt: skip
    if any(getattr(*place, None) for place in ((clip.patcher, "forced_hooks"), (clip, "apply_hooks_to_conds"))):
        raise UnsupportedModelError(Sentence(
            "This CLIP carries hooks (scheduled LoRAs), which training cannot follow: connect the CLIP from before "
            "Set CLIP Hooks."
        ))  # fmt: skip
