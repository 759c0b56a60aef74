"""The quantised weights of a safetensors file: which they are, in which format, and reading them."""

import json
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

import torch

from ...errors import DeltaError, UnsupportedModelError
from ...files import container
from ...foreign_text import NAME, plain
from ...names.resolve import BIAS, WEIGHT
from ...names.stored import prefix_in
from .elements import DTYPES, FLOAT8, SCALES
from .formats import DESCRIPTION, HARMLESS, OF_INPUTS, Format, Layer, Shape, unsupported
from .registry import FORMATS, UNDESCRIBED

# The file's metadata may describe its layers, instead of tensors beside them.
DESCRIPTIONS = "_quantization_metadata"
# A mark of older files: its dtype and size say how their weights were made.
MARK = "scaled_fp8"
# Files for other engines have no `.weight` at all where they are quantised.
_PACKED = (".qweight", ".weight_packed")
_WHOLE_NUMBERS = {"I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
_DTYPES = {**DTYPES, **FLOAT8, **_WHOLE_NUMBERS, "F8_E8M0": torch.uint8}
_SHORTER = "The checkpoint became shorter while it was read. Run it again."


class Found(NamedTuple):
    """A quantised weight that a file has. beside: own name → name in the file, of all that belongs to it"""

    format: Format
    beside: Mapping[str, str]
    options: Mapping


class QuantisedFile:
    """A safetensors file that is open, and its header.

    label: what to call it; header: name → dtype, shape and data_offsets; metadata: text → text
    """

    def __init__(self, content: BinaryIO, label: str):
        self.header, self.begin = container.read_header(content)
        self.metadata: dict[str, str] = self.header.pop(container.METADATA, {})
        self.label, self._content = label, content
        packed = next((name for name in self.header if name.endswith(_PACKED)), None)
        if packed is not None:
            raise UnsupportedModelError(
                f"'{label}' is quantised ('{plain(packed, NAME)}'): it has no weights that a delta could be added to. "
                "Use the fp16, bf16 or fp32 version of the checkpoint."
            )
        self._beside = self._layers()
        self._described = self._descriptions()

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor; of weights in a known format, their own."""
        return {name: self._shape(name, tuple(tensor["shape"])) for name, tensor in self.header.items()}

    def found(self, name: str) -> Found | None:
        """What a weight of the file is; None for one in fp16, bf16, fp32 or fp64.

        Raises UnsupportedModelError, by name, if it is in a format that is not known, or has beside it what is not.
        """
        stored, beside = self.header[name]["dtype"], self._beside_of(name)
        options = self._options(name)
        if options is None:
            return self._undescribed(name, stored, beside)
        format = self._format(options)
        if format is None or stored not in format.dtypes:
            raise self._unsupported(name, f"{stored} in the format '{plain(str(options.get('format')), NAME)}'")
        if format not in (FORMATS["float8_e4m3fn"], FORMATS["float8_e5m2"]) and len(self.header[name]["shape"]) != 2:
            raise self._unsupported(name, f"{format.name} of {len(self.header[name]['shape'])} sides")
        params = options.get("params", {})
        unknown = options.keys() - HARMLESS - format.options
        unknown |= params.keys() - HARMLESS - format.options if isinstance(params, dict) else {"params"}
        if unknown:
            raise self._unsupported(name, f"{format.name} with '{plain(min(unknown), NAME)}', which is not known here")
        if missing := format.scales.keys() - beside.keys():
            raise DeltaError(
                f"The checkpoint is damaged: the weight '{plain(name, NAME)}' of '{self.label}' is {format.name}, and "
                f"has no {min(missing)} beside it. Download it again."
            )
        self._check_beside(name, format, beside)
        return Found(format, beside, options)

    def is_beside(self, name: str) -> bool:
        """Whether a tensor belongs to the weight of its layer, as a scale does."""
        layer = name.rpartition(".")[0]
        while layer and layer not in self._beside:
            layer = layer.rpartition(".")[0]
        return name in self._beside.get(layer, {}).values()

    def raw(self, name: str) -> torch.Tensor:
        """The bytes of a tensor, in memory of its own. Raises DeltaError if the file is shorter now."""
        start, end = self.header[name]["data_offsets"]
        content = bytearray(end - start)
        self._content.seek(self.begin + start)
        if self._content.readinto(content) != len(content):
            raise DeltaError(_SHORTER)
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the file, as `raw`. Raises UnsupportedModelError for a dtype that no weight or scale has."""
        tensor = self.header[name]
        if tensor["dtype"] not in _DTYPES:
            raise self._unsupported(name, tensor["dtype"])
        return self.raw(name).view(_DTYPES[tensor["dtype"]]).view(tensor["shape"])

    def layer(self, name: str, found: Found) -> Layer:
        """A quantised weight with all that it is made of, read."""
        own = [own for own in found.beside if own in found.format.scales or own in found.format.optional]
        tensors = {"weight": self.read(name), **{one: self.read(found.beside[one]) for one in own}}
        return Layer(name, self.label, tensors, found.options)

    def _undescribed(self, name: str, stored: str, beside: Mapping[str, str]) -> Found | None:
        scales = [own for own in SCALES if own in beside]
        if stored in DTYPES and not scales:
            return None
        if stored not in FLOAT8 or len(scales) > 1:
            raise self._unsupported(name, f"{stored} with {', '.join(scales)}" if scales else stored)
        format = UNDESCRIBED[scales[0] if scales else None]
        self._check_beside(name, format, beside)
        return Found(format, beside, {})

    def _check_beside(self, name: str, format: Format, beside: Mapping[str, str]) -> None:
        known = {*format.scales, *format.optional, *OF_INPUTS, DESCRIPTION}
        wrong = sorted(beside.keys() - known)
        wrong += [own for own, dtypes in format.scales.items() if self.header[beside[own]]["dtype"] not in dtypes]
        wrong += [own for own in format.scales if format.name.startswith("float8") and self._numbers(beside[own]) != 1]
        if wrong:
            stored = self.header[name]["dtype"]
            raise self._unsupported(name, f"{stored} with {', '.join(dict.fromkeys(wrong))} beside it")

    @staticmethod
    def _format(options: Mapping) -> Format | None:
        name = options.get("format")
        return FORMATS.get(name) if isinstance(name, str) else None

    def _numbers(self, name: str) -> int:
        return torch.Size(self.header[name]["shape"]).numel()

    def _unsupported(self, name: str, stored: str):
        return unsupported(name, self.label, stored)

    def _shape(self, name: str, stored: Shape) -> Shape:
        options = self._options(name)
        format = self._format(options) if options else None
        return stored if format is None or len(stored) != 2 else format.shape(stored)

    def _beside_of(self, name: str) -> Mapping[str, str]:
        return self._beside.get(name.removesuffix(WEIGHT), {}) if name.endswith(WEIGHT) else {}

    def _options(self, name: str) -> dict | None:
        """The description of a weight, if it has one."""
        if not name.endswith(WEIGHT):
            return None
        if (described := self._described.get(name.removesuffix(WEIGHT))) is not None:
            return described
        place = self._beside_of(name).get(DESCRIPTION)
        if place is None:
            return None
        if self.header[place]["dtype"] != "U8":
            raise self._damaged(place)
        return self._json(bytes(self.read(place).view(-1).tolist()), place)

    def _descriptions(self) -> dict[str, dict]:
        """Layer → description, of those that the metadata describe, by their names in the file or in the model."""
        if DESCRIPTIONS not in self.metadata:
            return {}
        layers = self._json(self.metadata[DESCRIPTIONS].encode(), DESCRIPTIONS).get("layers")
        if not isinstance(layers, dict) or not all(isinstance(one, dict) for one in layers.values()):
            raise self._damaged(DESCRIPTIONS)
        prefix = prefix_in(self.header)
        own = {layer if layer in self._beside else prefix + layer: options for layer, options in layers.items()}
        return {layer: options for layer, options in own.items() if layer in self._beside}

    def _json(self, content: bytes, where: str) -> dict:
        try:
            described = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(where) from error
        if not isinstance(described, dict):
            raise self._damaged(where)
        return described

    def _damaged(self, where: str) -> DeltaError:
        return DeltaError(
            f"'{self.label}' is damaged: its '{plain(where, NAME)}' describes no quantised weight. Download it again."
        )

    def _layers(self) -> dict[str, dict[str, str]]:
        """Layer → what its weight has beside it: own name → name in the file."""
        layers: dict[str, dict[str, str]] = {
            name.removesuffix(WEIGHT): {} for name in self.header if name.endswith(WEIGHT)
        }
        for name in self.header:
            if name.endswith((WEIGHT, BIAS)):
                continue
            layer = name.rpartition(".")[0]
            while layer and layer not in layers:
                layer = layer.rpartition(".")[0]
            if layer:
                layers[layer][name.removeprefix(layer + ".")] = name
        return layers
