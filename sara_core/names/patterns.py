"""Which parameters are trained, by patterns over their names.

A plain word matches anywhere in a name, a pattern with * ? or [ must match the whole name, and a ! before either leaves
out what it matches: "attn2", "*temporal*", "!norm".

Weights of Linear and Conv layers are trained wherever the patterns let them. Any other parameter (a bias, a norm, an
embedding, a parameter of a module's own) is trained only where an included pattern *names* it: where the pattern is
its kind ("bias", "norm", "embedding", "parameter"), or where what the pattern says, without * and .weight at its end,
ends within the parameter's own part of the name. That part is the last word, and for a norm or an embedding the name
of the layer too. So "attn2" trains the layers of attn2 and neither their biases nor the norms between them; "bias",
"*attn2*bias" and "norm_q" name what they train.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import SelectionError
from ..wording import Sentence

LAYER_WEIGHT = "weight"
# Every other kind of parameter, and what a report calls it.
KINDS = {"bias": "biases", "norm": "norms", "embedding": "embeddings", "parameter": "other parameters"}
_SHOWN_WORDS = 24


@dataclass(frozen=True)
class NamedParameter:
    """A name of a parameter.

    kind: LAYER_WEIGHT or one of KINDS; own_part: index in `name` at which the parameter's own part begins (see above)
    """

    name: str
    kind: str
    own_part: int


@dataclass(frozen=True)
class Patterns:
    """What passes and what is left out.

    include, exclude: patterns without their !; no include lets everything pass
    kinds: KINDS of parameters that are trained beside the layers' weights
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()) -> "Patterns":
        """From what a user gives: lists, or texts with commas between the patterns."""
        words = split_patterns(include)
        included = tuple(word for word in words if not word.startswith("!"))
        left_out = tuple(word[1:].strip() for word in words if word.startswith("!"))
        return cls(included, (*split_patterns(exclude), *left_out))

    def allow(self, parameter: NamedParameter) -> bool:
        """Whether one of the patterns to include matches, or there are none."""
        return not self.include or any(matches(pattern, parameter) for pattern in self.include)

    def leave_out(self, parameter: NamedParameter) -> bool:
        """Whether one of the patterns to exclude matches."""
        return any(matches(pattern, parameter) for pattern in self.exclude)


# Names as ComfyUI has them; those of diffusers where they differ. Layers that compute attention and something else in
# one product (single_blocks of Flux) belong to neither.
_ATTENTION = Patterns(("attn", "*.attention.*", "attention_blocks", "*blocks.*.[qkv].weight"), ("modulation",))
_CROSS_ATTENTION = (
    "*transformer_blocks.*attn2*", "*time_stack.*attn2*", "*.blocks.*.attn2.*", "*.cross_attn.*",
)  # fmt: skip
_TEMPORAL = (
    "temporal", "motion_modules", "time_stack", "time_mix_blocks", "time_pos_embed", "temp_attentions", "temp_convs",
)  # fmt: skip
_BLOCKS = (
    "transformer_blocks", "joint_blocks", "double_blocks", "single_blocks", "double_layers", "single_layers",
    "double_stream_blocks", "single_stream_blocks", "blocks.*", "layers.*", "diffusion_model.blocks.*",
    "diffusion_model.layers.*",
)  # fmt: skip

ALL_LAYERS = "all layers"
PRESETS = {
    ALL_LAYERS: Patterns(),
    "all layers, biases and norms": Patterns(kinds=tuple(KINDS)),
    "attention only": _ATTENTION,
    "cross-attention only": Patterns(_CROSS_ATTENTION),
    "no text cross-attention": Patterns(exclude=_CROSS_ATTENTION),
    "transformer blocks only": Patterns(_BLOCKS),
    "temporal layers only": Patterns(_TEMPORAL),
}


class Choice:
    """The patterns of a user and those of a preset; both must let a parameter pass.

    preset: a key of PRESETS

    Raises SelectionError for a preset that does not exist.
    """

    def __init__(
        self, include: str | Iterable[str] = (), exclude: str | Iterable[str] = (), preset: str = ALL_LAYERS
    ):
        if preset not in PRESETS:
            raise SelectionError(f"There is no preset '{preset}'. Choose one of: {', '.join(PRESETS)}.")
        self.patterns, self.preset = Patterns.of(include, exclude), preset

    def takes(self, names: Iterable[NamedParameter]) -> bool:
        """Whether a parameter that goes by these names is trained: by any name, unless one of them is left out."""
        names, preset = list(names), PRESETS[self.preset]
        if any(patterns.leave_out(name) for patterns in (self.patterns, preset) for name in names):
            return False
        if any(name.kind == LAYER_WEIGHT for name in names):
            return any(map(self.patterns.allow, names)) and any(map(preset.allow, names))
        return any(
            self.patterns.allow(name) and preset.allow(name)
            and (name.kind in preset.kinds or any(_names(pattern, name) for pattern in self.patterns.include))
            for name in names
        )

    def check(self, parameters: Iterable[NamedParameter]) -> None:
        """Raise SelectionError for a pattern, or a preset, that matches nothing in a model of these parameters."""
        parameters = list(parameters)
        for pattern in (*self.patterns.include, *self.patterns.exclude):
            if not any(matches(pattern, parameter) for parameter in parameters):
                hint = Sentence(" A pattern with * must match a whole name.") if _is_glob(pattern) else ""
                raise SelectionError(Sentence(
                    "The pattern '{pattern}' matches no weight of this model.{hint} The names of the model are "
                    "made of: {names}.", pattern=pattern, hint=hint, names=_vocabulary(parameters),
                ))  # fmt: skip
        preset = PRESETS[self.preset]
        patterns = (*preset.include, *preset.exclude)
        layers = [parameter for parameter in parameters if parameter.kind == LAYER_WEIGHT]
        if patterns and not any(matches(pattern, layer) for pattern in patterns for layer in layers):
            raise SelectionError(
                f"The preset '{self.preset}' fits nothing in this model: choose another one. The names of the model "
                f"are made of: {_vocabulary(layers)}."
            )


def split_patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    """The patterns of a text with commas between them; those of a list as they are."""
    parts = patterns.split(",") if isinstance(patterns, str) else patterns
    return tuple(part.strip() for part in parts if part.strip())


def matches_name(pattern: str, name: str) -> bool:
    """A plain word matches anywhere in a name; a pattern with * ? or [ must match the whole name."""
    return fnmatchcase(name, pattern) if _is_glob(pattern) else pattern in name


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def matches(pattern: str, parameter: NamedParameter) -> bool:
    """As `matches_name`; a pattern that is the kind of a parameter that is no layer's weight matches it, too."""
    return pattern == parameter.kind != LAYER_WEIGHT or matches_name(pattern, parameter.name)


def _names(pattern: str, parameter: NamedParameter) -> bool:
    if pattern == parameter.kind:
        return True
    if not matches_name(pattern, parameter.name):
        return False
    whole = pattern if _is_glob(pattern) else f"*{pattern}"
    said = re.sub(r"(\*|\.?weight|\.)+$", "", whole)
    ends = range(parameter.own_part + 1, len(parameter.name) + 1)
    return any(fnmatchcase(parameter.name[:end], said) for end in ends)


def _vocabulary(parameters: Iterable[NamedParameter]) -> str:
    words = dict.fromkeys(
        word for parameter in parameters for word in parameter.name.split(".") if not word.isdigit()
    )
    shown = list(words)[:_SHOWN_WORDS]
    return ", ".join(shown) + (" …" if len(words) > len(shown) else "")
