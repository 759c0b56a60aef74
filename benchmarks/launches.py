"""What a training step asks torch and our kernels for, layer by layer, on a GPU: counted, so that no GPU is needed.

    python dev.py bench launches [--against REVISION]

Every operation that computes or copies is a launch, and so is a kernel of ours; views cost nothing. Where steps are
short, the time passes in making launches. Tensors without content stand for those on the GPU (torch's fake tensors).
`--against` counts the same at another revision of this repository, with this file.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lib.report import text_table
from devtools.comfyui.install import ROOT

DEVICE, DTYPE, ELEMENTS, WEIGHTS = "cuda", torch.bfloat16, 300, 100
LAYERS = {
    "Linear": (lambda **there: torch.nn.Linear(64, 64, **there), (2, 8, 64)),
    "Conv 3×3": (lambda **there: torch.nn.Conv2d(16, 16, 3, padding=1, **there), (2, 16, 8, 8)),
}
ROUTES = ("dense", "triton-tiles", "triton-dots")


# What computes nothing, beside the views that torch calls so.
FREE = ("split", "_unsafe_view", "prim::", "promote", "empty")


class Launches(TorchDispatchMode):
    """count: operations that are no views, and kernels of ours that have said so"""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.name()
        self.count += not (operation.is_view or any(part in name for part in FREE))
        return operation(*arguments, **(options or {}))


def kernels(launches: Launches) -> SimpleNamespace:
    """Stand-ins for the modules of kernels, each call of which is a launch."""

    def product(crow, col, a, b, total=None):
        launches.count += 1
        return torch.empty(len(col), device=a.device) if total is None else total

    def elements(*arguments):
        launches.count += 1

    return SimpleNamespace(
        tiles=product, dots=product, pick_=elements, change_=elements, write_=elements, DTYPES={DTYPE: None}
    )


@contextlib.contextmanager
def counted(with_kernels: bool) -> Iterator[Launches]:
    """Inside, what is asked for is counted, and our kernels are there or not."""
    from sara_core.backward import weight_gradient

    with contextlib.ExitStack() as undo:
        launches = Launches()
        stand_ins = kernels(launches)
        undo.enter_context(mock.patch.object(weight_gradient, "_kernels", lambda: (stand_ins, None)))
        with contextlib.suppress(ImportError, AttributeError):  # other revisions have none
            from sara_core.backward import parameters, write_back

            for module in (weight_gradient, write_back, parameters):
                there = stand_ins if with_kernels else None
                undo.enter_context(mock.patch.object(module, "kernels_for", lambda device, dtype: there))
            # Tensors without content are of a class of their own, those on a GPU are not.
            undo.enter_context(mock.patch.object(parameters, "has_own_operations", lambda tensor: False))
        undo.enter_context(launches)
        yield launches


def rows(with_kernels: bool) -> dict[str, float]:
    """What is done → launches."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sara_core.backward import store as stores
    from sara_core.backward import weight_gradient
    from sara_core.backward.access import AddedCopy
    from sara_core.backward.ops import layer_op
    from sara_core.backward.support import Segment, Support

    result = {}
    with FakeTensorMode(allow_non_fake_inputs=True), mock.patch.object(stores, "_digest", lambda *segment: ""), \
            mock.patch.object(weight_gradient, "check_route", lambda *route: None):  # fmt: skip
        for name, (make, shape) in LAYERS.items():
            layer = make(device=DEVICE, dtype=DTYPE).requires_grad_(False)
            rows_of = layer.weight.shape[0] + 1

            def segment(number: int = 0) -> Segment:
                crow, col = (torch.empty(n, dtype=torch.int32, device=DEVICE) for n in (rows_of, ELEMENTS))
                return Segment(f"w{number}", tuple(layer.weight.shape), crow, col, number * ELEMENTS)

            store, op = stores.Store(Support([segment()]), DEVICE), layer_op(layer)
            store.bind(0, layer, False)
            store.values.grad = torch.empty_like(store.values)
            x = torch.empty(shape, device=DEVICE, dtype=DTYPE)
            output = torch.empty_like(layer(x))
            for route in ROUTES if with_kernels else ("dense",):
                with counted(with_kernels) as launches:
                    store.take(0, op, x, output, route)
                result[f"{name}: gradient of its elements, {route}"] = launches.count
            with counted(with_kernels) as launches:
                AddedCopy(store, 0).add(layer.weight, DTYPE)
            result[f"{name}: Δ added to a copy"] = launches.count
            many = stores.Store(Support([segment(number) for number in range(WEIGHTS)]), DEVICE)
            for number in range(WEIGHTS):
                many.bind(number, make(device=DEVICE, dtype=DTYPE).requires_grad_(False), True)
            with mock.patch.object(torch.Tensor, "data_ptr", lambda tensor: id(tensor)):
                for _ in range(2):  # the first also lays out what is kept
                    with counted(with_kernels) as launches:
                        many.write()
            result[f"{name}: {WEIGHTS} weights written back"] = launches.count
    return result


def counts() -> dict[str, dict[str, float]]:
    """With kernels of ours and without, as where there is no Triton."""
    return {"with Triton": rows(True), "without": rows(False)}


def counts_at(revision: str) -> dict[str, dict[str, float]]:
    """As `counts`, of another revision, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="comfyui-sara-launches-") as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        shutil.copy2(__file__, Path(folder, "benchmarks", "launches.py"))
        command = [sys.executable, "-m", "benchmarks.launches", "--lines"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench launches", description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REVISION", help="count at another revision, too")
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.lines:
        print(json.dumps(counts()))
        return 0
    columns = {"today": counts()}
    if arguments.against:
        columns = {arguments.against: counts_at(arguments.against), **columns}
    for where in ("with Triton", "without"):
        print(f"\n{where}")
        names = columns["today"][where]
        table = [[name, *(str(column[where].get(name, "-")) for column in columns.values())] for name in names]
        print("\n".join(text_table(["launches for", *columns], table)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
