"""The routes by Triton kernels: that the kernels are right and compile for GPUs, and that nobody needs them."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sara_core import SaRA, UnsupportedModelError
from sara_core.backward import weight_gradient
from sara_core.backward.ops import LinearOp, layer_op
from sara_core.backward.support import Support
from sara_core.backward.weight_gradient import KERNELS, ROUTES, sparse_weight_gradient

ROOT = Path(__file__).resolve().parents[3]
TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def run_here(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    return result.stdout


@TRITON
@pytest.mark.parametrize("interpret", [pytest.param("1", id="interpreted"), pytest.param("0", id="gpu", marks=GPU)])
def test_the_kernels_compute_what_dense_products_do(interpret):
    output = run_here("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/support/triton_kernels.py",
                      TRITON_INTERPRET=interpret)  # fmt: skip
    assert " passed" in output and "skipped" not in output


def products(crow, col, a, b, total=None):
    """What both kernels compute: the elements of a·bᵀ in compressed rows, added to `total` if that is given."""
    rows = torch.arange(len(a)).repeat_interleave(crow.diff())
    result = (a[rows] * b[col.long()]).sum(1)
    return result if total is None else total.add_(result)


LAYERS = {
    "linear": (nn.Linear(12, 10), (2, 5, 12), (2, 5, 10)),
    "linear, one token": (nn.Linear(12, 10), (12,), (10,)),
    "convolution": (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 6, 5), (2, 8, 6, 5)),
    "convolution in groups": (nn.Conv2d(4, 8, 3, groups=2, stride=2), (2, 4, 7, 9), (2, 8, 3, 4)),
}


@pytest.mark.parametrize("route", KERNELS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_kernels_are_given_what_makes_the_dense_gradient(monkeypatch, route, name):
    """With torch in the kernels' place, so that it is known where Triton is not."""
    stand_in = SimpleNamespace(INTERPRETED=True, tiles=products, dots=products)
    monkeypatch.setattr(weight_gradient, "_kernels", lambda: (stand_in, None))
    module, *shapes = LAYERS[name]
    index = torch.randperm(module.weight.numel())[:30].sort().values.to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": tuple(module.weight.shape)})
    layer = layer_op(module), segment, *map(torch.randn, shapes)
    torch.testing.assert_close(sparse_weight_gradient(*layer, route), sparse_weight_gradient(*layer, "dense"))


@TRITON
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("unit_strides", [("a_row", "b_column"), ("a_token", "b_token")], ids=["linear", "convolution"])
def test_the_kernels_compile_for_gpus_and_use_their_matrix_units(
    monkeypatch, tmp_path, capability, dtype, unit_strides
):
    """Without a GPU: the compiler needs none."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from sara_core.backward import triton_gradient

    tile = {"TILE": 64, "TILE_TOKENS": triton_gradient.TILE_TOKENS, "PRECISION": "ieee", "ADDS": True}
    tiles = compiled(triton_gradient._tiles, capability, dtype, unit_strides, tile)
    assert ("mma" in tiles) == (dtype != "fp32")
    if dtype == "fp32":
        assert "mma" in compiled(triton_gradient._tiles, capability, dtype, unit_strides, {**tile, "PRECISION": "tf32"})
    dot = {"DOTS": triton_gradient.DOTS, "DOT_TOKENS": triton_gradient.DOT_TOKENS, "ADDS": True}
    assert compiled(triton_gradient._dots, capability, dtype, unit_strides, dot)


@TRITON
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_kernels_for_elements_compile_for_gpus(monkeypatch, tmp_path, capability, dtype):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton.language as tl

    from sara_core.backward import triton_elements

    stored = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}[dtype]
    size = {"ELEMENTS": triton_elements.ELEMENTS}
    for kernel, constants in (
        (triton_elements._pick, size), (triton_elements._write, size),
        (triton_elements._change, {**size, "STORED": stored}),
    ):  # fmt: skip
        assert compiled(kernel, capability, dtype, (), constants)


def compiled(kernel, capability, dtype, unit_strides, constants) -> str:
    """The assembly of a kernel for a GPU of NVIDIA's."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**constants, **dict.fromkeys(unit_strides, 1)}
    pointers = {
        "crow": "*i32", "col": "*i32", "table": "*i64", **dict.fromkeys(("out", "total", "values"), "*fp32"),
        **dict.fromkeys(("a", "b", "dense", "copy", "base"), f"*{dtype}"),
    }  # fmt: skip
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]


@pytest.fixture
def layer():
    """(op, segment, x, gradient of the output) of a Linear 12 → 10"""
    torch.manual_seed(0)
    index = torch.randperm(120)[:14].sort().values.to(torch.int32)
    segment, = Support.from_indices({"w": index}, {"w": (10, 12)})
    return LinearOp(), segment, torch.randn(5, 12), torch.randn(5, 10)


@pytest.fixture
def measuring(monkeypatch):
    """Routes are chosen as on a GPU on which Triton runs; each takes the seconds noted here, or raises what is."""
    takes, clock, add_ = {"dense": 2.0, "csr": 3.0}, [0.0], weight_gradient._add_

    def timed(route, *layer):
        if isinstance(takes[route], Exception):
            raise takes[route]
        clock[0] += takes[route]
        add_("dense" if route in KERNELS else route, *layer)

    monkeypatch.setattr(weight_gradient, "_add_", timed)
    monkeypatch.setattr(weight_gradient, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(weight_gradient, "_obstacle", lambda device: None)
    monkeypatch.setattr(weight_gradient, "_fastest_route", weight_gradient._measured_route)
    monkeypatch.setattr(weight_gradient, "_fastest", {})
    monkeypatch.setattr(weight_gradient, "_given_up", set())
    return takes


@pytest.mark.parametrize("fastest", ROUTES[1:])
def test_the_fastest_route_is_taken(measuring, layer, fastest):
    measuring.update(dict.fromkeys(KERNELS, 4.0))
    measuring[fastest] = 1.0
    assert weight_gradient._measured_route(*layer) == fastest


def test_kernels_that_do_not_compile_are_left_out_with_one_warning_each(measuring, layer, caplog):
    expected = sparse_weight_gradient(*layer, "csr")
    measuring.update({"triton-tiles": RuntimeError("out of resources"), "triton-dots": ImportError("no C compiler")})
    for _ in range(3):
        weight_gradient._fastest.clear()
        torch.testing.assert_close(sparse_weight_gradient(*layer), expected)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "triton-tiles" in warnings[0] and "out of resources" in warnings[0]
    assert "triton-dots" in warnings[1] and "no C compiler" in warnings[1]


def test_a_kernel_that_fails_after_it_was_measured_is_left_out_too(measuring, layer, caplog):
    measuring.update({"triton-tiles": 1.0, "triton-dots": 1.5})
    sparse_weight_gradient(*layer)
    assert set(weight_gradient._fastest.values()) == {"triton-tiles"}
    measuring["triton-tiles"] = RuntimeError("another layout")
    torch.testing.assert_close(sparse_weight_gradient(*layer), sparse_weight_gradient(*layer, "csr"))
    assert set(weight_gradient._fastest.values()) == {"triton-dots"}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_a_kernel_that_gives_other_numbers_is_left_out(monkeypatch, measuring, layer, caplog, factor):
    measuring.update({"triton-tiles": 1.0, "triton-dots": 5.0})
    add_, factors = weight_gradient._add_, {"triton-tiles": factor}

    def otherwise(route, total, *of):
        add_(route, total, *of)
        total *= factors.get(route, 1)

    monkeypatch.setattr(weight_gradient, "_add_", otherwise)
    torch.testing.assert_close(sparse_weight_gradient(*layer), sparse_weight_gradient(*layer, "csr"))
    assert set(weight_gradient._fastest.values()) == {"dense"}
    assert len(caplog.records) == 1 and "other numbers" in caplog.text


@pytest.mark.parametrize("route, error", [
    ("csr", RuntimeError("no sampled product")), ("triton-dots", torch.OutOfMemoryError("out of memory")),
])  # fmt: skip
def test_other_errors_are_not_hidden(measuring, layer, caplog, route, error):
    measuring.update({**dict.fromkeys(KERNELS, 1.0), route: error})
    with pytest.raises(type(error), match=str(error)):
        sparse_weight_gradient(*layer)
    assert not caplog.records and not weight_gradient._given_up


@pytest.mark.parametrize("route", KERNELS)
@pytest.mark.parametrize("kernels, cause", [
    ((SimpleNamespace(INTERPRETED=False), None), "runs on NVIDIA and AMD GPUs only, and this model is on the CPU"),
    ((None, ImportError("No module named 'triton'")), r"cannot be loaded here \(No module named 'triton'\)"),
])  # fmt: skip
def test_where_kernels_do_not_run_their_routes_are_refused(monkeypatch, layer, route, kernels, cause):
    monkeypatch.setattr(weight_gradient, "_kernels", lambda: kernels)
    remedy = cause + r".*\. Choose \"auto\""
    with pytest.raises(UnsupportedModelError, match=remedy):
        sparse_weight_gradient(*layer, route)
    model = nn.Linear(12, 10)
    with pytest.raises(UnsupportedModelError, match=remedy):
        SaRA(model, density=0.1, weight_gradient=route)
    assert type(model) is nn.Linear and model.weight.requires_grad


def test_an_unknown_route_is_refused(layer):
    with pytest.raises(ValueError, match="one of auto, dense, csr, triton-tiles, triton-dots, not 'triton'"):
        sparse_weight_gradient(*layer, "triton")


def test_nobody_needs_triton():
    """Training where Triton cannot be imported; on the CPU nobody even asks for it."""
    run_here("-c", """if True:
        import sys, torch
        sys.modules["triton"] = None
        from sara_core import SaRA
        from sara_core.backward import weight_gradient
        model = torch.nn.Linear(12, 10)
        optimizer = SaRA(model, density=0.1)
        model(torch.randn(5, 12)).sum().backward()
        optimizer.step()
        assert optimizer.values.any()
        assert not weight_gradient._kernels.cache_info().misses
        kernels, error = weight_gradient._kernels()
        assert kernels is None and "triton" in str(error)
        assert weight_gradient._obstacle(torch.device("cuda"))
    """)
