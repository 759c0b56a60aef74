"""What a backward asks torch for is what is needed, and what torch says of it is heard by nobody."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sara_core.backward import ops, weight_gradient
from tests.support.small_models import attached


class Convolutions(TorchDispatchMode):
    """Notes which gradients each backward of a convolution is asked for: of its input, weight and bias."""

    def __init__(self):
        super().__init__()
        self.wanted = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation.overloadpacket is torch.ops.aten.convolution_backward:
            self.wanted.append(tuple(arguments[-1]))
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("route, gradients", [
    ("dense", {(True, False, False), (False, True, False)}),  # each by itself: the weight's comes in parts
    ("csr", {(True, False, False)}),
])  # fmt: skip
def test_no_gradient_of_a_convolution_is_computed_that_nobody_takes(route, gradients):
    layer = torch.nn.Conv2d(3, 4, 3)
    attached(layer, density=0.5, route=route)
    output = layer(torch.randn(2, 3, 6, 6, requires_grad=True)).sum()
    with Convolutions() as asked:
        output.backward()
    assert set(asked.wanted) == gradients


@pytest.fixture
def torch_repeats_itself():
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


@pytest.mark.usefixtures("torch_repeats_itself")
def test_what_torch_says_once_of_sparse_tensors_is_said_where_nobody_hears_it(monkeypatch):
    say = weight_gradient._let_torch_say_that_csr_is_beta.__wrapped__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say()
    with pytest.warns(UserWarning, match="Sparse CSR tensor support is in beta"):
        monkeypatch.setattr(warnings, "simplefilter", lambda action: None)
        say()
        monkeypatch.undo()


def test_no_part_of_a_convolutions_weight_is_too_large_for_the_systems_malloc_to_keep():
    assert ops.WEIGHT_COPY_BYTES < 32 << 20


@pytest.mark.parametrize("error, is_believed", [(0.009, True), (0.011, False), (float("nan"), False)])
def test_a_kernel_is_believed_up_to_a_hundredth(error, is_believed):
    expected = torch.tensor([3.0, 4.0])
    result = expected + torch.tensor([5.0 * error, 0.0])
    weight_gradient._check_kernel("csr", expected + 1, expected)  # torch itself always is
    if is_believed:
        weight_gradient._check_kernel("triton-dots", result, expected)
    else:
        with pytest.raises(ArithmeticError):
            weight_gradient._check_kernel("triton-dots", result, expected)


def test_a_measurement_counts_for_sizes_like_its_own_only():
    assert weight_gradient._about(1000) == weight_gradient._about(1024) == weight_gradient._about(1100)
    assert len({weight_gradient._about(1 << power) for power in range(4, 24)}) == 20
