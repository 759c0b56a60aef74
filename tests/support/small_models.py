"""What the engine's tests share: small models, the obvious (dense) way to train them, and memory counted exactly."""

import copy
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sara_core import SaRA
from sara_core.backward.access import InPlace
from sara_core.backward.attach import attach_layers, plain_layers
from sara_core.backward.store import Store
from sara_core.backward.support import Support
from sara_core.selection.select import select
from sara_core.selection.trainable import trainable_weights


@contextmanager
def repeatable():
    """Seeded, and on one thread: what these tests compute is too small for more."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SmallNet(nn.Module):
    """[n, 3, 8, 8] → [n, 4]: convolutions, norms, a residual changed in place, a shared module and a tied weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.sequence = nn.Conv1d(8, 8, 3, padding=1)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8, bias=False)
        self.tied = nn.Linear(8, 12)
        self.tied.weight = self.up.weight
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        h = self.grouped(F.silu(self.norm(self.conv(x))))
        h = self.sequence(h.flatten(2)).transpose(1, 2)
        h = h + self.down(F.gelu(self.up(h)))
        changed = self.down(F.gelu(self.tied(h)))
        changed += h
        return self.out(changed.mean(1))


def small_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet().to(dtype)


def small_batches(count: int, size: int = 4, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of input [size, 3, 8, 8] and target [size, 4]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randn(size, 4, generator=generator))
        for _ in range(count)
    ]


def loss_of(model, batch) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def attached(model, *, density=0.3, route="dense", copy_weights=False, **patterns) -> Store:
    """Attach a model without the optimizer around it."""
    weights = trainable_weights(model, **patterns)
    tensors = {name: layer.weight for name, layer in weights.items()}
    shapes = {name: weight.shape for name, weight in tensors.items()}
    store = Store(Support.from_indices(select(tensors, density=density).indices, shapes))
    attach_layers(
        model, plain_layers(model), store, weights, route, is_written=lambda holder: not copy_weights,
        access_of=lambda added: added or InPlace(),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return store


def trained(steps: int = 3, **options) -> tuple[SmallNet, SaRA]:
    """A small net after some steps of SaRA, and its optimizer; options: of SaRA."""
    model = small_net()
    ours = SaRA(model, density=0.3, lr=1e-2, **options)
    for batch in small_batches(steps):
        ours.zero_grad()
        loss_of(model, batch).backward()
        ours.step()
    return model, ours


def at_support(tensors, support) -> torch.Tensor:
    """The elements of name → dense tensor that a support chooses, one after the other."""
    return torch.cat([tensors[s.name].detach().reshape(-1)[s.flat()] for s in support])


def masked_gradient(model, support) -> torch.Tensor:
    """The dense gradients of an ordinary model, masked to a support."""
    return at_support({name: parameter.grad for name, parameter in model.named_parameters()}, support)


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


class MaskedTraining:
    """The obvious way to train a support: dense gradients of the whole model, masked, and an optimizer over Δ alone.

    model: a copy of the base; support: of the engine's store, for its positions only
    """

    def __init__(self, model, support, optimizer=torch.optim.AdamW, **options):
        self.model, self.support = copy.deepcopy(model), support
        self.parameters = dict(self.model.named_parameters())
        self.base = at_support(self.parameters, support)
        self.delta = nn.Parameter(torch.zeros(support.nnz))
        self.optimizer = optimizer([self.delta], **options)

    def step(self, max_norm: float | None = None) -> None:
        """Take the gradients that backward has left on the dense weights."""
        self.delta.grad = masked_gradient(self.model, self.support).float()
        if max_norm is not None:
            nn.utils.clip_grad_norm_([self.delta], max_norm)
        self.optimizer.step()
        self.model.zero_grad()
        changed = (self.base.float() + self.delta.detach()).to(self.base.dtype)
        for segment in self.support:
            weight = self.parameters[segment.name]
            with torch.no_grad():
                weight.view(-1)[segment.flat()] = changed[segment.span]


def every_bit(model) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Memory:
    """Bytes that torch allocated on the CPU: `sizes` of all pieces, `peak` at a time, `left` when it was over."""

    def __init__(self):
        self.sizes, self.peak, self.left = [], 0, 0

    @property
    def largest(self) -> int:
        return max(self.sizes, default=0)


@contextmanager
def counted_memory():
    """Count every allocation inside, those inside of operators too: `with counted_memory() as memory: …`."""
    memory = Memory()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield memory
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    alive = {}
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            alive[address] = size
            memory.sizes.append(size)
        else:
            alive.pop(address, None)  # what was there before is not counted
        memory.peak = max(memory.peak, sum(alive.values()))
    memory.left = sum(alive.values())
