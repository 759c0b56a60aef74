"""What a Linear or convolution computes, as functions of a weight that comes from outside.

The backward of a sparse layer needs three separate pieces (output, gradient of the input, gradient of chosen weight
elements); a module offers only the first, and only with its own weight.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from .transposed import transposed_parts

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# Bytes of unfolded convolution input held at a time.
UNFOLD_BYTES = 24 << 20
# On the CPU a sampled product reads the rows of the laid-out input in no order. So at most what a cache holds of them
# is laid out at a time, but enough tokens for a row to be worth its start. Of a convolution, whose rows are long and
# whose parts take more calls each, what the last cache holds.
CACHED_BYTES = 1536 << 10
UNFOLDED_CACHED_BYTES = 4 << 20
TOKENS_WORTH_A_ROW = 64
# Beyond so many tokens at a time nothing is won, and the laid-out gradient of the output leaves the cache too.
MOST_TOKENS = 256
# On the CPU a convolution lays its weight out anew for every use. Above 32 MiB the system's malloc gives such a copy
# back and fetches fresh memory every time, which takes longer than the convolution: so at most this of it at a time.
WEIGHT_COPY_BYTES = 24 << 20
# Processors compute output channels in blocks of 4 to 64, and what is left over often by another kernel, which adds up
# in another order. Parts of whole blocks gave the whole's bits wherever it was tried; torch promises nothing.
CHANNEL_BLOCK = 64


class LayerOp(Protocol):
    """One layer's computation, as functions of tensors that all belong to the caller: nothing is kept or changed.

    x: the layer's input after `prepare`: [..., in] of a Linear, [batch, in, *size] of a convolution
    weight: [out, in] or [out, in / groups, *kernel]; bias: [out] or None
    grad_output: gradient of the output, [..., out] or [batch, out, *positions]. In the methods that take both it has
        the floating dtype of the other tensor, and anything may have any memory layout

    groups: into how many independent parts the channels fall; spatial_dims: dimensions of *size, None of a Linear
    """

    groups: int
    spatial_dims: int | None

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """The input as the other methods take it; differentiable, and done by autograd."""
        ...

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The output, in the bits that torch's own layer gives."""
        ...

    def input_gradient(
        self, grad_output: torch.Tensor, weight: torch.Tensor, input_shape: tuple[int, ...]
    ) -> torch.Tensor:
        """∂loss/∂x, of `input_shape`, in the dtype of `grad_output`."""
        ...

    def bias_gradient(self, grad_output: torch.Tensor) -> torch.Tensor:
        """∂loss/∂bias, fp32 [out]."""
        ...

    def weight_gradient_rows(
        self, x: torch.Tensor, grad_output: torch.Tensor, weight_shape: tuple[int, ...], first: int, last: int
    ) -> torch.Tensor:
        """Rows [first, last) of ∂loss/∂weight, all of one group: [last - first, elements of a row]."""
        ...

    def weight_gradient_factors(
        self, x: torch.Tensor, grad_output: torch.Tensor, group: int, dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs a [out / groups, tokens], b [elements of a row, tokens] whose products a bᵀ sum to the group's rows of
        ∂loss/∂weight. Both are of `dtype` and contiguous over tokens: the layout in which dot products of single
        elements are fastest."""
        ...


@dataclass(frozen=True)
class LinearOp:
    """y = x Wᵀ + b for x [..., in], W [out, in]."""

    groups = 1
    spatial_dims = None

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def input_gradient(
        self, grad_output: torch.Tensor, weight: torch.Tensor, input_shape: tuple[int, ...]
    ) -> torch.Tensor:
        return grad_output @ weight

    def bias_gradient(self, grad_output: torch.Tensor) -> torch.Tensor:
        return grad_output.reshape(-1, grad_output.shape[-1]).sum(0, dtype=torch.float32)

    def weight_gradient_rows(
        self, x: torch.Tensor, grad_output: torch.Tensor, weight_shape: tuple[int, ...], first: int, last: int
    ) -> torch.Tensor:
        g = grad_output.reshape(-1, grad_output.shape[-1])[:, first:last]
        return g.t() @ x.reshape(-1, x.shape[-1])

    def weight_gradient_factors(
        self, x: torch.Tensor, grad_output: torch.Tensor, group: int, dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """On the CPU some tokens at a time; elsewhere all of them, as each part would be further launches."""
        factors = grad_output.reshape(-1, grad_output.shape[-1]), x.reshape(-1, x.shape[-1])
        at_a_time = max(1, len(factors[0]))
        if x.device.type == "cpu":
            at_a_time = min(MOST_TOKENS, max(TOKENS_WORTH_A_ROW, CACHED_BYTES // (x.shape[-1] * dtype.itemsize)))
        yield from zip(*(transposed_parts(factor, at_a_time, dtype) for factor in factors))


@dataclass(frozen=True)
class ConvOp:
    """Convolution of x [batch, in, *size] with W [out, in/groups, *kernel], in 1, 2 or 3 spatial dimensions.

    pad_before: what `prepare` pads with for modes and sides a convolution's own zero padding cannot express, as
    (mode, widths in the order of torch.nn.functional.pad), or None
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pad_before: tuple[str, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, module: torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d) -> "ConvOp":
        """The geometry of a module, in each of its padding modes."""
        padding, pad_before = module.padding, None
        widths = module._reversed_padding_repeated_twice  # before and after, from the last dimension to the first
        if module.padding_mode != "zeros":
            padding, pad_before = (0,) * len(module.kernel_size), (module.padding_mode, tuple(widths))
        elif isinstance(padding, str):
            # As torch does it, so that both add up in one order: the convolution itself pads what both sides have, and
            # only what an even kernel needs beyond that is padded before.
            befores, afters = widths[::2], widths[1::2]
            padding = tuple(reversed(befores))
            if befores != afters:
                rest = (width for before, after in zip(befores, afters) for width in (0, after - before))
                pad_before = ("constant", tuple(rest))
        return cls(module.kernel_size, module.stride, padding, module.dilation, module.groups, pad_before)

    @property
    def spatial_dims(self) -> int:
        """Dimensions of *size, 1 to 3."""
        return len(self.kernel)

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        """Padded where the convolution itself cannot."""
        return x if self.pad_before is None else F.pad(x, self.pad_before[1], mode=self.pad_before[0])

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.spatial_dims - 1]
        options = self.stride, self.padding, self.dilation, self.groups
        parts = self._output_channels(weight)
        if len(parts) == 1:
            return convolve(x, weight, bias, *options)
        return torch.cat(
            [convolve(x, weight[rows], None if bias is None else bias[rows], *options) for rows in parts], 1
        )

    def input_gradient(
        self, grad_output: torch.Tensor, weight: torch.Tensor, input_shape: tuple[int, ...]
    ) -> torch.Tensor:
        # Only the input's shape matters here: a zero-stride stand-in saves keeping the input.
        stand_in = grad_output.new_empty(1).expand(input_shape)
        parts = self._output_channels(weight)
        if len(parts) == 1:
            return self._backward(grad_output, stand_in, weight, self.groups, [True, False, False])[0]
        total = None
        for rows in parts:
            part = self._backward(grad_output[:, rows], stand_in, weight[rows], self.groups, [True, False, False])[0]
            total = part if total is None else total.add_(part)
        return total

    def bias_gradient(self, grad_output: torch.Tensor) -> torch.Tensor:
        return grad_output.flatten(2).sum((0, 2), dtype=torch.float32)

    def weight_gradient_rows(
        self, x: torch.Tensor, grad_output: torch.Tensor, weight_shape: tuple[int, ...], first: int, last: int
    ) -> torch.Tensor:
        group = first // (weight_shape[0] // self.groups)
        stand_in = x.new_empty(1).expand(last - first, *weight_shape[1:])
        x = self._channels_of(x, group)
        gradient = self._backward(grad_output[:, first:last], x, stand_in, 1, [False, True, False])[1]
        return gradient.reshape(last - first, -1)

    def weight_gradient_factors(
        self, x: torch.Tensor, grad_output: torch.Tensor, group: int, dtype: torch.dtype
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The input is unfolded, a chunk of output positions at a time."""
        # Before it is unfolded the input is small: cast then, it is read once.
        x, grad_output = (self._channels_of(tensor, group).to(dtype) for tensor in (x, grad_output))
        if any(self.padding):  # by nothing it would be a copy
            x = F.pad(x, [width for padding in reversed(self.padding) for width in (padding, padding)])
        batch, channels = x.shape[:2]
        if batch == 0:
            return
        positions = grad_output.shape[2:]
        columns = channels * math.prod(self.kernel)
        token_bytes = columns * x.element_size()
        sample_bytes = token_bytes * math.prod(positions)
        at_a_time = UNFOLD_BYTES
        if x.device.type == "cpu":
            at_a_time = min(at_a_time, max(UNFOLDED_CACHED_BYTES, TOKENS_WORTH_A_ROW * token_bytes))
        samples = min(batch, max(1, at_a_time // sample_bytes))
        lines = min(positions[0], max(1, positions[0] * at_a_time // sample_bytes))
        for sample in range(0, batch, samples):
            for line in range(0, positions[0], lines):
                g = grad_output[sample:sample + samples, :, line:line + lines]
                part = x[sample:, :, line * self.stride[0]:]  # where it ends, the strides below say
                per_sample, per_channel, *per_dim = part.stride()
                unfolded = part.as_strided(
                    (channels, *self.kernel, g.shape[0], *g.shape[2:]),
                    (per_channel, *(s * d for s, d in zip(per_dim, self.dilation)),
                     per_sample, *(s * d for s, d in zip(per_dim, self.stride))),
                )
                yield g.transpose(0, 1).reshape(g.shape[1], -1), unfolded.reshape(columns, -1)

    def _output_channels(self, weight) -> list[slice]:
        """All output channels, in as many parts as keep the copies of the weight small."""
        channels = weight.shape[0]
        if weight.device.type != "cpu" or self.groups > 1:
            return [slice(0, channels)]
        at_a_time = max(1, WEIGHT_COPY_BYTES * channels // (weight.numel() * weight.element_size()))
        if CHANNEL_BLOCK < at_a_time < channels:
            at_a_time -= at_a_time % CHANNEL_BLOCK
        return [slice(first, first + at_a_time) for first in range(0, channels, at_a_time)]

    def _channels_of(self, tensor, group):
        width = tensor.shape[1] // self.groups
        return tensor[:, group * width:(group + 1) * width]

    def _backward(self, grad_output, x, weight, groups, wanted):
        return torch.ops.aten.convolution_backward(
            grad_output, x, weight, None, self.stride, self.padding, self.dilation,
            False, [0] * self.spatial_dims, groups, wanted,
        )


def layer_op(module: torch.nn.Module) -> LayerOp | None:
    """The operation of a Linear or Conv1d/2d/3d module (a host's own Linear counts), or None for any other module."""
    if isinstance(module, CONVOLUTIONS):
        return ConvOp.of(module)
    hosts_own = hasattr(module, "in_features") and hasattr(module, "weight_function")
    # A bank of experts has the same attributes, and no forward: the model asks it for one expert at a time.
    if isinstance(module, torch.nn.Linear) or (hosts_own and type(module).forward is not torch.nn.Module.forward):
        return LinearOp()
    return None
