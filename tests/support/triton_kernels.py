"""The Triton kernels against dense products; test_triton_gradient.py runs these tests, each time in a new process:
Triton's interpreter (on the CPU, TRITON_INTERPRET=1) must be chosen before Triton is imported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sara_core import SaRA
from sara_core.backward import ops as layers
from sara_core.backward import element_kernels, triton_elements, triton_gradient
from sara_core.backward.ops import layer_op
from sara_core.backward.support import Support
from sara_core.backward.weight_gradient import KERNELS, sparse_weight_gradient
from sara_core.tensors.elements import added, gather, overwrite_, scatter_
from tests.support.small_models import loss_of, relative_error, repeatable, small_batches, small_net

DEVICE = "cpu" if triton_gradient.INTERPRETED else "cuda"
TOLERANCE = 1e-5  # fp32; a half-precision product is exact in fp32, so the same holds for all
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

PRODUCTS = pytest.mark.parametrize("product", [triton_gradient.tiles, triton_gradient.dots])
ROUTES = pytest.mark.parametrize("route", KERNELS)


@pytest.fixture(autouse=True)
def same_numbers(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # what is compared with
    with repeatable():
        yield


def factors(rows, columns, tokens, dtype=torch.float32):
    return [torch.randn(size, tokens, device=DEVICE).to(dtype) for size in (rows, columns)]


def compressed(mask):
    """(crow, col) of a mask [rows, columns]"""
    index = mask.reshape(-1).nonzero().view(-1).to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": mask.shape})
    return segment.crow, segment.col


def random_mask(rows, columns, density=0.1):
    return torch.rand(rows, columns, device=DEVICE) < density


def check(product, mask, a, b):
    crow, col = compressed(mask)
    result = product(crow, col, a, b)
    assert result.dtype == torch.float32 and result.shape == col.shape
    expected = (a.double() @ b.double().t())[mask]
    assert (result.double() - expected).norm() <= TOLERANCE * expected.norm()
    return result


# Around the sides of the tiles (64 and 128), of the chunks of tokens (32 and 128) and of the blocks of dots (16).
@pytest.mark.parametrize("shape", [
    (1, 1, 1), (3, 5, 7), (64, 64, 32), (65, 63, 33), (63, 130, 31), (1, 200, 129), (200, 1, 128), (17, 16, 257),
])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@PRODUCTS
def test_elements_of_a_product(product, shape, dtype):
    rows, columns, tokens = shape
    mask = random_mask(rows, columns, 0.06)
    mask[-1, -1] = True
    check(product, mask, *factors(rows, columns, tokens, dtype))


@pytest.mark.parametrize("least_tokens", [512, 16], ids=["in one part", "in several parts"])
@PRODUCTS
def test_a_product_is_added_to_what_is_there(monkeypatch, product, least_tokens):
    monkeypatch.setattr(triton_gradient, "PROGRAMS_PER_PROCESSOR", 1000)
    monkeypatch.setattr(triton_gradient, "LEAST_TOKENS", least_tokens)
    crow, col = compressed(random_mask(40, 30))
    a, b = factors(40, 30, 200)
    before = torch.randn(len(col), device=DEVICE)
    total = before.clone()
    assert product(crow, col, a, b, total) is total
    assert torch.equal(total, before + product(crow, col, a, b))


@PRODUCTS
def test_full_rows_empty_rows_and_empty_tiles(product):
    mask = torch.zeros(70, 200, dtype=torch.bool, device=DEVICE)
    mask[3] = mask[69] = True
    mask[5, 64] = mask[6, 127] = mask[7, 128] = True
    check(product, mask, *factors(70, 200, 20))
    check(product, torch.ones(9, 130, dtype=torch.bool, device=DEVICE), *factors(9, 130, 5))


@PRODUCTS
def test_no_element_and_no_token(product):
    assert len(check(product, torch.zeros(5, 6, dtype=torch.bool, device=DEVICE), *factors(5, 6, 4))) == 0
    assert not check(product, random_mask(20, 30), *factors(20, 30, 0)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_tiles(monkeypatch, dtype):
    monkeypatch.setattr(triton_gradient, "LARGE", 1)
    check(triton_gradient.tiles, random_mask(130, 140), *factors(130, 140, 40, dtype))


@pytest.mark.parametrize("tokens", [128, 300, 513])
@PRODUCTS
def test_tokens_in_several_parts(monkeypatch, product, tokens):
    monkeypatch.setattr(triton_gradient, "PROGRAMS_PER_PROCESSOR", 1000)
    monkeypatch.setattr(triton_gradient, "LEAST_TOKENS", 64)
    divide, parts = triton_gradient._division, []
    monkeypatch.setattr(triton_gradient, "_division", lambda *args: parts.append(divide(*args)) or parts[-1])
    a, b = factors(40, 30, tokens)
    mask = random_mask(40, 30)
    results = [check(product, mask, a, b) for _ in range(2)]
    assert torch.equal(*results)  # the same bits every time
    assert tokens == 128 or parts[0][1] > 1
    assert all(size * (count - 1) < tokens <= size * count for size, count in parts)


@PRODUCTS
def test_factors_in_any_layout(product):
    mask, (a, b) = random_mask(20, 30), factors(20, 30, 40)
    for x in (
        a.t().contiguous().t(),
        torch.randn(40, 80, device=DEVICE)[::2, ::2],
        torch.randn(20, 1, device=DEVICE).expand(20, 40),
    ):
        check(product, mask, x[:20, :40], b)
        check(product, mask.t(), b, x[:20, :40])


@PRODUCTS
def test_what_is_not_finite_reaches_only_its_own_elements(product):
    """A loss scaler looks for it, and an element beside it in the same tile must stay what it is."""
    mask, (a, b) = random_mask(20, 30, 0.5), factors(20, 30, 40)
    a[3, 5], b[7, 2], b[8, 39] = float("inf"), float("nan"), -float("inf")
    result = product(*compressed(mask), a, b)
    torch.testing.assert_close(result, (a.double() @ b.double().t())[mask].float(), equal_nan=True)
    assert result.isfinite().any() and not result.isfinite().all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), sizes=st.tuples(*[st.integers(1, 40)] * 3), dtype=st.sampled_from(list(DTYPES.values())))
@PRODUCTS
def test_any_pattern(product, data, sizes, dtype):
    rows, columns, tokens = sizes
    cells = st.integers(0, rows * columns - 1)
    chosen = data.draw(st.one_of(st.sets(cells, max_size=40), st.just(range(rows * columns))))
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[list(chosen)] = True
    check(product, mask.view(rows, columns).to(DEVICE), *factors(rows, columns, tokens, dtype))


LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (2, 5, 12)),
    "linear, empty batch": (lambda: nn.Linear(12, 10), (0, 12)),
    "linear, double": (lambda: nn.Linear(12, 10).double(), (2, 5, 12)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 4, stride=2, padding=3, dilation=2), (3, 4, 19)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3, padding=1), (3, 4, 11, 9)),
    "conv2d 1×1": (lambda: nn.Conv2d(4, 8, 1), (3, 4, 5, 6)),
    "conv2d groups, circular": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2, padding_mode="circular"), (2, 4, 6, 6)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (2, 4, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2, padding=1), (2, 4, 4, 3, 5)),
}  # fmt: skip


@pytest.mark.parametrize("unfold_bytes", [24 << 20, 3000])  # whole, and in several chunks
@pytest.mark.parametrize("layer", LAYERS)
@ROUTES
def test_layers(monkeypatch, route, layer, unfold_bytes):
    monkeypatch.setattr(layers, "UNFOLD_BYTES", unfold_bytes)
    make, shape = LAYERS[layer]
    module = make().to(DEVICE)
    x = torch.randn(shape, device=DEVICE, dtype=module.weight.dtype)
    output = module(x)
    grad_output = torch.randn_like(output)
    output.backward(grad_output)
    mask = torch.rand(module.weight.shape, device=DEVICE) < 0.3
    index = mask.view(-1).nonzero().view(-1).to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": mask.shape})
    op = layer_op(module)
    result = sparse_weight_gradient(op, segment, op.prepare(x), grad_output, route)
    expected = module.weight.grad[mask]
    assert (result - expected).norm() <= TOLERANCE * expected.norm()


@ROUTES
def test_a_model_trains_as_by_the_dense_route(route):
    models = [small_net().to(DEVICE) for _ in range(2)]
    optimizers = [SaRA(m, density=0.3, lr=1e-3, weight_gradient=way) for m, way in zip(models, (route, "dense"))]
    for batch in small_batches(2):
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            loss_of(model, [part.to(DEVICE) for part in batch]).backward()
            optimizer.step()
        assert relative_error(*(optimizer.values.grad for optimizer in optimizers)) <= 10 * TOLERANCE


def test_fp32_is_rounded_to_tf32_only_where_torch_may():
    matmul = torch.backends.cuda.matmul
    assert not triton_gradient._tf32_is_allowed()
    matmul.allow_tf32 = True
    assert triton_gradient._tf32_is_allowed()
    matmul.allow_tf32 = False
    assert not triton_gradient._tf32_is_allowed()
    if hasattr(torch.backends, "fp32_precision"):  # torch 2.9: once it is used, the old name may raise
        matmul.fp32_precision = "tf32"
        assert triton_gradient._tf32_is_allowed()
        matmul.fp32_precision = "ieee"
        assert not triton_gradient._tf32_is_allowed()


# Triton's interpreter rounds to bf16 by cutting off.
ELEMENT_DTYPES = [dtype for dtype in DTYPES.values() if DEVICE == "cuda" or dtype != torch.bfloat16]


@pytest.mark.parametrize("dtype", ELEMENT_DTYPES)
def test_the_kernels_for_elements_give_torchs_bits(dtype):
    element_kernels.prove(triton_elements, torch.device(DEVICE), dtype)


@pytest.mark.parametrize("name", ["change_", "write_", "pick_"])
def test_a_kernel_that_does_nothing_is_found_out(monkeypatch, name):
    monkeypatch.setattr(triton_elements, name, lambda *arguments: None)
    with pytest.raises(ArithmeticError):
        element_kernels.prove(triton_elements, torch.device(DEVICE), torch.float32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), dtype=st.sampled_from(ELEMENT_DTYPES))
def test_any_weights_are_written_together(data, dtype):
    """Weights without elements, of one row, of one column; more elements than a program has; changes of 0."""
    shape = st.sampled_from([(1, 700), (700, 1), (3, 4, 2, 2), (5,), (40, 30)])
    shapes = data.draw(st.lists(shape, min_size=1, max_size=4))
    weights = [torch.randn(shape, device=DEVICE).to(dtype) for shape in shapes]
    weights[0].view(-1)[::3] = -0.0
    index = {}
    for number, weight in enumerate(weights):
        density = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
        index[str(number)] = torch.rand(weight.numel(), device=DEVICE).lt(density).nonzero().view(-1).to(torch.int32)
    support = Support.from_indices(index, {str(number): shape for number, shape in enumerate(shapes)})
    values = torch.randn(support.nnz, device=DEVICE) * (torch.rand(support.nnz, device=DEVICE) < 0.8)
    expected, base = [weight.clone() for weight in weights], []
    for segment, weight in zip(support, expected):
        base.append(gather(weight, segment.flat()))
        overwrite_(weight, segment.flat(), base[-1], values[segment.span])
    for weight in weights:  # the base counts, not what is there
        weight.view(-1)[::2] += 1
    for segment, weight, wanted in zip(support, weights, expected):
        rest = torch.ones(weight.numel(), dtype=torch.bool, device=DEVICE)
        rest[segment.flat()] = False
        wanted.view(-1)[rest] = weight.view(-1)[rest]
    triton_elements.write_(
        element_kernels.table_of(weights, support.segments), torch.cat([segment.crow for segment in support]),
        torch.cat([segment.col for segment in support]), torch.cat(base), values,
    )  # fmt: skip
    for weight, wanted in zip(weights, expected):
        assert torch.equal(weight.view(BITS[dtype]), wanted.view(BITS[dtype]))


@pytest.mark.parametrize("stored, computed", [(torch.float16, torch.float32), (torch.float32, torch.float16)])
def test_a_copys_sum_is_rounded_as_the_stored_weights_would_be(stored, computed):
    copy = torch.randn(30, 40, device=DEVICE).to(computed)
    index = torch.rand(1200, device=DEVICE).lt(0.4).nonzero().view(-1).to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": (30, 40)})
    values = torch.randn(len(segment), device=DEVICE)
    wanted = scatter_(
        copy.clone(), segment.flat(), added(gather(copy, segment.flat()).to(stored), values, 1.0).to(computed)
    )
    triton_elements.change_(copy, segment.crow, segment.col, values, stored)
    assert torch.equal(copy, wanted)
