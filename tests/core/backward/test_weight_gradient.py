"""The gradient of the chosen elements equals the dense gradient masked to them, for every supported layer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sara_core.backward import cpu_costs, ops as layers
from sara_core.backward import weight_gradient
from sara_core.backward.ops import ConvOp, LinearOp
from sara_core.backward.support import Segment, Support
from sara_core.backward.weight_gradient import sparse_weight_gradient
from sara_core.errors import UnsupportedModelError
from tests.support.small_models import attached, masked_gradient, relative_error, repeatable

pytestmark = pytest.mark.bits

TOLERANCE = 1e-5
WAYS = [(route, copies) for route in ("dense", "csr") for copies in (False, True)]
WAY_NAMES = [f"{route}, {'after a copy' if copies else 'in place'}" for route, copies in WAYS]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (19,), 2: (11, 9), 3: (7, 6, 8)}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}

LINEARS = {
    "2-D input": (dict(), (5, 12)),
    "3-D input": (dict(), (2, 5, 12)),
    "5-D input": (dict(), (2, 3, 1, 2, 12)),
    "1-D input": (dict(), (12,)),
    "no bias": (dict(bias=False), (2, 5, 12)),
    "no bias, 1-D input": (dict(bias=False), (12,)),
}
GEOMETRIES = {
    "1d": (1, dict(kernel_size=3)),
    "1d strided, dilated": (1, dict(kernel_size=4, stride=2, padding=3, dilation=2)),
    "1d same, even kernel": (1, dict(kernel_size=4, padding="same")),
    "1d depthwise, circular": (1, dict(kernel_size=3, padding=2, groups=4, padding_mode="circular")),
    "2d 1x1": (2, dict(kernel_size=1)),
    "2d 1x1 strided": (2, dict(kernel_size=1, stride=2)),
    "2d 3x3": (2, dict(kernel_size=3, padding=1)),
    "2d no bias": (2, dict(kernel_size=3, bias=False)),
    "2d uneven": (2, dict(kernel_size=(3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2))),
    "2d stride leaves a rest": (2, dict(kernel_size=2, stride=3, padding=(1, 0))),
    "2d same, even kernel": (2, dict(kernel_size=(4, 3), padding="same", dilation=(1, 2))),
    "2d same, odd kernel": (2, dict(kernel_size=3, padding="same")),
    "2d valid": (2, dict(kernel_size=3, padding="valid")),
    "2d reflect": (2, dict(kernel_size=3, padding=(2, 1), padding_mode="reflect", stride=2)),
    "2d circular": (2, dict(kernel_size=3, padding=1, padding_mode="circular")),
    "2d replicate, same": (2, dict(kernel_size=4, padding="same", padding_mode="replicate")),
    "2d groups": (2, dict(kernel_size=3, padding=1, groups=2)),
    "2d depthwise": (2, dict(kernel_size=3, padding=2, dilation=2, groups=4)),
    "3d": (3, dict(kernel_size=3, padding=1)),
    "3d uneven, groups": (3, dict(kernel_size=(1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2), groups=2)),
    "3d same, even kernel": (3, dict(kernel_size=2, padding="same")),
    "3d replicate": (3, dict(kernel_size=3, padding=(1, 0, 2), padding_mode="replicate", dilation=(1, 2, 1))),
}  # fmt: skip
SEAMS = ["2d 3x3", "2d uneven", "2d stride leaves a rest", "2d same, even kernel", "2d groups", "2d depthwise",
         "1d strided, dilated", "3d uneven, groups"]  # fmt: skip


def convolution(dims, options, channels=(4, 8)):
    return CONVOLUTIONS[dims](*channels, **options)


class Products(TorchDispatchMode):
    """Notes the arguments of every convolution and matrix product that torch is asked for, with the bias last."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        kind = operation.overloadpacket.__name__
        if kind == "convolution":
            x, weight, bias, *geometry = arguments
            dims = x.dim() - 2  # [1] stands for [1, 1] in two dimensions
            geometry = [part * dims if isinstance(part, list) and len(part) == 1 else part for part in geometry]
            self.made.append((kind, geometry, x, weight, bias))
        elif kind in ("addmm", "mm", "addmv", "mv", "bmm"):
            *bias, x, weight = arguments
            self.made.append((kind, options, x, weight, *bias))
        return operation(*arguments, **(options or {}))


def forward_as(frozen, module, x, tolerance):
    """The output of a layer for x, after a check that it asks torch for the very products that the plain, frozen module
    does: of the same operands, bit for bit, a convolution's output channels in parts or not.

    The outputs' bits are not compared: how torch adds a product up depends on the processor, on where the operands lie
    in memory, on how many channels are computed at a time, and on whether a weight requires a gradient.
    """
    with Products() as ours:
        output = module(x)
    with Products() as expected:
        same = frozen(x.detach())
    (kind, settings, *operands), = expected.made
    assert all(made[:2] == (kind, settings) and torch.equal(made[2], operands[0]) for made in ours.made)
    for place, whole in enumerate(operands[1:], 3):
        parts = [made[place] for made in ours.made]
        assert set(parts) == {None} if whole is None else torch.equal(torch.cat(parts), whole)
    assert relative_error(output.detach(), same) <= tolerance
    return output


def check(module, x, *, route, copies, input_needs_grad=True, density=0.3):
    """One forward and backward of `module` as it is and attached: the same products, the same gradients."""
    plain, frozen = copy.deepcopy(module), copy.deepcopy(module).requires_grad_(False)
    store = attached(module, density=density, route=route, copy_weights=copies)
    inputs = [x.detach().requires_grad_(input_needs_grad) for _ in range(2)]  # a clone would have another layout
    expected, output = plain(inputs[0]), forward_as(frozen, module, inputs[1], 1e-6)
    assert output.stride() == expected.stride()
    weighting = torch.randn_like(expected)
    expected.backward(weighting)
    output.backward(weighting)
    assert relative_error(store.values.grad, masked_gradient(plain, store.support)) <= TOLERANCE
    if input_needs_grad:
        assert relative_error(inputs[1].grad, inputs[0].grad) <= TOLERANCE
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.fixture(autouse=True)
def same_numbers():
    with repeatable():
        yield


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("kind", LINEARS)
def test_linear(kind, route, copies):
    options, shape = LINEARS[kind]
    check(nn.Linear(12, 10, **options), torch.randn(shape), route=route, copies=copies)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
def test_linear_with_inputs_in_any_layout(route, copies):
    for x in (
        torch.randn(2, 12, 5).transpose(1, 2),
        torch.randn(5, 2, 12).transpose(0, 1),
        torch.randn(2, 5, 24)[..., ::2],
        torch.randn(1, 1, 12).expand(2, 5, 12),
    ):
        check(nn.Linear(12, 10), x, route=route, copies=copies)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
def test_a_weight_in_any_layout(route, copies):
    for weight in (torch.randn(12, 10).t(), torch.randn(20, 12)[::2], torch.randn(10, 15)[:, 2:14]):
        linear = nn.Linear(12, 10)
        linear.weight = nn.Parameter(weight)
        check(linear, torch.randn(5, 12), route=route, copies=copies)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolution(geometry, route, copies):
    dims, options = GEOMETRIES[geometry]
    for leading in ((3, 4), (1, 4), (4,)):  # the last is a single sample without a batch dimension
        check(convolution(dims, options), torch.randn(*leading, *SIZES[dims]), route=route, copies=copies)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("geometry", [g for g, (dims, _) in GEOMETRIES.items() if dims > 1])
def test_channels_last_convolution(geometry, route, copies):
    dims, options = GEOMETRIES[geometry]
    x = torch.randn(2, 4, *SIZES[dims])
    for module_format, input_format in [(True, True), (False, True), (True, False)]:
        module = convolution(dims, options)
        if module_format:
            module = module.to(memory_format=CHANNELS_LAST[dims])
        y = x.to(memory_format=CHANNELS_LAST[dims]) if input_format else x
        check(module, y, route=route, copies=copies)


@pytest.mark.parametrize("size", [1, 100, 220, 1000])
@pytest.mark.parametrize("route", ["dense", "csr"])
@pytest.mark.parametrize("geometry", SEAMS)
def test_chunk_seams_of_convolutions(monkeypatch, geometry, route, size):
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", size)
    monkeypatch.setattr(layers, "UNFOLD_BYTES", 20 * size)
    dims, options = GEOMETRIES[geometry]
    check(convolution(dims, options), torch.randn(3, 4, *SIZES[dims]), route=route, copies=False)


@pytest.mark.parametrize("size", [1, 100, 200])
@pytest.mark.parametrize("density", [0.02, 0.5])
def test_chunk_seams_of_linear(monkeypatch, size, density):
    monkeypatch.setattr(weight_gradient, "DENSE_BYTES", size)
    check(nn.Linear(12, 10), torch.randn(2, 5, 12), route="dense", copies=False, density=density)


@pytest.mark.parametrize("bytes_held, tokens", [(1, 1), (1, 3), (12 * 4 * 4, 1), (1 << 20, 64)])
@pytest.mark.parametrize("most", [2, 512])
def test_token_seams_of_linear(monkeypatch, bytes_held, tokens, most):
    monkeypatch.setattr(layers, "CACHED_BYTES", bytes_held)
    monkeypatch.setattr(layers, "TOKENS_WORTH_A_ROW", tokens)
    monkeypatch.setattr(layers, "MOST_TOKENS", most)
    check(nn.Linear(12, 10), torch.randn(2, 5, 12), route="csr", copies=False)


@pytest.mark.parametrize("layer, x, grad_output", [
    (layers.LinearOp(), (1, 4096, 640), (1, 4096, 320)),
    (layers.LinearOp(), (1, 64, 12288), (1, 64, 16)),
    (ConvOp((3, 3), (1, 1), (1, 1), (1, 1), 1), (2, 320, 64, 64), (2, 8, 64, 64)),
    (ConvOp((3, 3), (1, 1), (1, 1), (1, 1), 1), (2, 2560, 8, 8), (2, 8, 8, 8)),
])  # fmt: skip
def test_what_a_sampled_product_reads_in_no_order_fits_a_cache_or_is_a_few_tokens(layer, x, grad_output):
    shapes = []
    held = layers.CACHED_BYTES if layer.spatial_dims is None else layers.UNFOLDED_CACHED_BYTES
    for a, b in layer.weight_gradient_factors(torch.zeros(x), torch.zeros(grad_output), 0, torch.float32):
        shapes.append((a.shape[1], b.nbytes))
        assert a.shape[1] == b.shape[1] and (b.nbytes <= held or b.shape[1] <= 64)
    assert len(shapes) > 1 or shapes[0][0] == 64


@pytest.mark.parametrize("route", ["dense", "csr"])
def test_groups_and_rows_without_a_chosen_element(route):
    conv = nn.Conv2d(4, 8, 3, groups=4)
    with torch.no_grad():
        conv.weight[2:6] = 10
        conv.weight[0] = 10
    check(conv, torch.randn(2, 4, 6, 6), route=route, copies=False, density=0.2)
    linear = nn.Linear(6, 5)
    with torch.no_grad():
        linear.weight[1:] = 10
    check(linear, torch.randn(2, 6), route=route, copies=False, density=0.05)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), dims=st.sampled_from([1, 2, 3]))
def test_any_convolution(data, dims):
    def per_dim(smallest, largest):
        return data.draw(st.tuples(*[st.integers(smallest, largest)] * dims))

    groups = data.draw(st.sampled_from([1, 2, 4]))
    options = dict(kernel_size=per_dim(1, 3), dilation=per_dim(1, 2), groups=groups, bias=data.draw(st.booleans()))
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    if data.draw(st.booleans()):
        options.update(padding="same", padding_mode=mode)
    else:
        options.update(padding=per_dim(0, 2), stride=per_dim(1, 3), padding_mode=mode)
    channels = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3))
    if groups == channels[0] == channels[1] and options["kernel_size"] == (1,) * dims:
        return  # a handful of elements: a density of them may be none or all
    x = torch.randn(data.draw(st.integers(1, 3)), channels[0], *per_dim(5, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_gradient, "DENSE_BYTES", data.draw(st.integers(1, 2000)))
        patch.setattr(layers, "UNFOLD_BYTES", data.draw(st.integers(1, 20000)))
        patch.setattr(layers, "WEIGHT_COPY_BYTES", data.draw(st.sampled_from([1, 100, layers.WEIGHT_COPY_BYTES])))
        route, copies = data.draw(st.sampled_from(WAYS))
        check(convolution(dims, options, channels), x, route=route, copies=copies, density=0.4)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
def test_an_input_that_needs_no_gradient(route, copies):
    check(nn.Linear(12, 10), torch.randn(5, 12), route=route, copies=copies, input_needs_grad=False)
    conv = nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")
    check(conv, torch.randn(2, 4, 6, 6), route=route, copies=copies, input_needs_grad=False)


@pytest.mark.parametrize("route, copies", WAYS, ids=WAY_NAMES)
@pytest.mark.parametrize("dtype, tolerance", [
    # The inputs are exact in these dtypes, so only the dense route's result is rounded: once, by half an ulp of 2^-8 or
    # 2^-11 at the most, plus what a low-precision accumulation inside the operator may add. Gradients of the input are
    # compared with the operator's own, in the same dtype.
    (torch.bfloat16, 2**-8),
    (torch.float16, 2**-11),
], ids=["bf16", "fp16"])  # fmt: skip
@pytest.mark.parametrize("module, shape", [
    (nn.Linear(12, 10), (2, 5, 12)),
    (nn.Conv2d(4, 8, 3, padding=1, stride=2), (2, 4, 9, 9)),
    (nn.Conv2d(4, 8, 3, groups=2, padding="same"), (2, 4, 9, 9)),
    (nn.Conv1d(4, 8, 3), (2, 4, 19)),
], ids=["linear", "conv2d", "conv2d groups", "conv1d"])  # fmt: skip
def test_half_precision_weights(module, shape, dtype, tolerance, route, copies):
    module = copy.deepcopy(module).to(dtype)
    plain, exact = copy.deepcopy(module), copy.deepcopy(module).double()
    frozen = copy.deepcopy(module).requires_grad_(False)
    store = attached(module, route=route, copy_weights=copies)
    x = torch.randn(shape, dtype=dtype)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_(), x.double().requires_grad_()]
    output, same_precision = forward_as(frozen, module, inputs[0], tolerance), plain(inputs[1])
    weighting = torch.randn_like(output)
    output.backward(weighting)
    same_precision.backward(weighting)
    exact(inputs[2]).backward(weighting.double())
    assert store.values.grad.dtype == torch.float32
    assert relative_error(store.values.grad, masked_gradient(exact, store.support)) <= tolerance
    assert relative_error(inputs[0].grad, inputs[1].grad) <= tolerance


@pytest.mark.parametrize("route", ["dense", "csr"])
def test_double_precision_weights(route):
    module = nn.Linear(12, 10).double()
    check(module, torch.randn(5, 12, dtype=torch.float64), route=route, copies=False)


@pytest.mark.parametrize("route", [
    "dense",
    "csr",
])  # fmt: skip
def test_an_empty_batch_has_a_zero_gradient(route):
    for module, shape in [(nn.Linear(12, 10), (0, 12)), (convolution(2, dict(kernel_size=3, groups=2)), (0, 4, 6, 6))]:
        store = attached(module, route=route)
        module(torch.randn(shape)).sum().backward()
        assert not store.values.grad.any()


def segment_of(shape, count) -> Segment:
    numel = torch.Size(shape).numel()
    index = torch.randperm(numel, generator=torch.Generator().manual_seed(0))[:count].sort().values.to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": shape})
    return segment


@pytest.mark.parametrize("count, route", [(12, "csr"), (13, "dense")])
def test_on_a_cpu_that_nobody_has_measured_the_density_decides(monkeypatch, count, route):
    monkeypatch.setattr(cpu_costs, "processor", lambda: None)
    monkeypatch.setattr(weight_gradient, "_measure", None)  # no clock
    used = []
    for name in ("_add_dense_", "_add_csr_"):
        monkeypatch.setattr(weight_gradient, name, lambda *args, name=name: used.append(name))
    sparse_weight_gradient(LinearOp(), segment_of((10, 10), count), torch.randn(5, 10), torch.randn(5, 10))
    assert used == [f"_add_{route}_"]


def test_elsewhere_a_route_is_measured_once_per_layer_shape(monkeypatch):
    monkeypatch.setattr(weight_gradient, "_fastest", {})
    measured = []
    monkeypatch.setattr(weight_gradient, "_measure", lambda op, *_: measured.append(op) or "csr")
    for shape, count in [((12, 12), 14), ((12, 12), 15), ((10, 12), 14)] * 2:  # about equal counts share an answer
        x, grad_output = torch.randn(5, shape[1]), torch.randn(5, shape[0])
        assert weight_gradient._measured_route(LinearOp(), segment_of(shape, count), x, grad_output) == "csr"
    assert len(measured) == 2


@pytest.mark.parametrize("seconds, fastest", [
    ({"csr": (9, 1), "dense": (5, 2)}, "csr"),  # the first use of a route also warms it up
    ({"csr": (2, 2), "dense": (9, 1)}, "dense"),
    ({"csr": (1, 9), "dense": (2, 2)}, "csr"),  # another program came between
])  # fmt: skip
def test_the_route_with_the_shortest_of_two_times_is_chosen(monkeypatch, seconds, fastest):
    linear = LinearOp(), (10, 12), (5, 12), (5, 10)
    convolution = ConvOp.of(nn.Conv2d(4, 8, 3)), (8, 4, 3, 3), (2, 4, 6, 6), (2, 8, 4, 4)
    for op, shape, x, output in (linear, convolution):
        now, rest = [0], {route: list(times) for route, times in seconds.items()}

        def timed(route, *arguments):
            now[0] += rest[route].pop(0)
            add_(route, *arguments)

        with monkeypatch.context() as patch:
            add_ = weight_gradient._add_
            patch.setattr(weight_gradient, "_add_", timed)
            patch.setattr(weight_gradient.time, "perf_counter", lambda: now[0])
            patch.setattr(weight_gradient, "_obstacle", lambda device: "no kernels")
            chosen = weight_gradient._measure(op, segment_of(shape, 5), torch.randn(x), torch.randn(output))
        assert chosen == fastest and not any(rest.values())


@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 2, 2), (9,), (1, 6), (6, 1)])
def test_positions_survive_the_compressed_rows(shape):
    numel = torch.Size(shape).numel()
    for density in (0.1, 0.5, 1.0):
        index = torch.rand(numel).le(density).nonzero().view(-1).to(torch.int32)
        if not len(index):
            continue
        segment, = Support.from_indices({"w": index}, {"w": shape})
        assert segment.crow.dtype == segment.col.dtype == torch.int32
        assert torch.equal(segment.flat(), index.long())
        for first in range(segment.rows):
            for last in range(first, segment.rows + 1):
                inside = (index >= first * segment.columns) & (index < last * segment.columns)
                assert torch.equal(segment.flat(first, last), index[inside].long() - first * segment.columns)


def test_segments_lie_one_after_the_other_in_the_vector():
    index = {"a": torch.tensor([1, 4], dtype=torch.int32), "b": torch.tensor([0, 2, 3], dtype=torch.int32)}
    support = Support.from_indices(index, {"a": (2, 3), "b": (2, 2)})
    assert [(s.name, s.span) for s in support] == [("a", slice(0, 2)), ("b", slice(2, 5))]
    assert support.nnz == 5 and len(support) == 2


def test_devices_without_sampled_products_take_the_dense_way(monkeypatch):
    """MPS: what "auto" tries must not be what torch does not have there."""
    monkeypatch.setattr(weight_gradient, "_measure", None)  # nothing is tried
    x, grad_output = torch.zeros(3, 4, device="meta"), torch.zeros(3, 5, device="meta")
    assert weight_gradient._fastest_route(layers.LinearOp(), None, x, grad_output) == "dense"
    with pytest.raises(UnsupportedModelError, match='"csr": torch has no sampled products on the MPS'):
        weight_gradient.check_route("csr", torch.device("mps"))
    weight_gradient.check_route("dense", torch.device("mps"))
    weight_gradient.check_route("auto", torch.device("mps"))
