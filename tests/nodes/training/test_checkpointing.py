"""Gradient checkpointing of blocks that write over what autograd has saved, and of those that do not."""

import pytest
import torch
import torch.nn.functional as F


class Block(torch.nn.Module):
    """Two layers on a residual stream, as in a transformer block."""

    def __init__(self, overwrites):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(8, 8) for _ in range(2))
        self.overwrites = overwrites
        self.calls = 0

    def forward(self, x, options=None, gate=None):
        self.calls += 1
        if options is not None:
            gate = options.pop("gate")
        if self.overwrites == "its input":
            x += self.first(F.layer_norm(x, (8,))) * gate
        elif self.overwrites == "a saved tensor":
            x = x * 1.0
            norm = F.layer_norm(x, (8,))
            x.addcmul_(self.first(norm), gate)
        else:
            x = x + self.first(F.layer_norm(x, (8,))) * gate
        return x + self.second(F.layer_norm(x, (8,)))


class Stack(torch.nn.Module):
    def __init__(self, overwrites):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Block(overwrites) for _ in range(3)).double()

    def forward(self, x):
        gate = torch.linspace(0.5, 1.5, 8, dtype=torch.float64)
        x = self.blocks[0](x * 2, {"gate": gate})
        x = self.blocks[1](x, gate=gate)
        return self.blocks[2](x, gate=gate)


def gradients(comfy, overwrites, always=None, steps=1, make=Stack, depth=None):
    """Gradients of all weights and of the input; always: None leaves checkpointing out; depth: as install_all."""
    checkpointing = comfy.pack_module("nodes.host.training.checkpointing")
    with torch.inference_mode(False), torch.enable_grad():
        model = make(overwrites)
        undo = [] if always is None else [checkpointing.install(block, always) for block in model.blocks]
        if depth is not None:
            attach_layers(comfy, model)
            undo = [*undo, *checkpointing.install_all(model, depth)]
        for _ in range(steps):
            model.zero_grad()
            x = torch.linspace(-1, 1, 4 * 8, dtype=torch.float64).view(4, 8).requires_grad_()
            model(x).square().sum().backward()
        for undo_one in reversed(undo):
            undo_one()
        assert not any("forward" in module.__dict__ for module in model.modules())
        if depth is not None:
            comfy.pack_module("sara_core.backward.attach").detach_model(model)
        return [x.grad, *(parameter.grad for parameter in model.parameters())], [b.calls for b in model.blocks]


class Attention(torch.nn.Module):
    """A part of a block, of several layers."""

    def __init__(self):
        super().__init__()
        self.q, self.k = (torch.nn.Linear(8, 8) for _ in range(2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.q(x) * torch.tanh(self.k(x))


class BlockOfParts(torch.nn.Module):
    def __init__(self, overwrites):
        super().__init__()
        self.attention, self.feed_forward, self.overwrites = Attention(), Attention(), overwrites
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        for part in (self.attention, self.feed_forward):
            if self.overwrites == "its input":
                x += part(F.layer_norm(x, (8,)))
            elif self.overwrites == "a part's input":
                normed = F.layer_norm(x, (8,))
                change = part(normed)
                normed += x
                x = x + change
            else:
                x = x + part(F.layer_norm(x, (8,)))
        return x


class StackOfParts(torch.nn.Module):
    def __init__(self, overwrites):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(BlockOfParts(overwrites) for _ in range(2)).double()

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x * 2))


def attach_layers(comfy, model):
    """Attached but frozen: checkpointing looks for attached layers, and gradients go to the blocks' inputs only."""
    pack = comfy.pack_module("sara_core.backward.attach")
    support = comfy.pack_module("sara_core.backward.support").Support([])
    store = comfy.pack_module("sara_core.backward.store").Store(support)
    pack.attach_model(model, store, {})


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("overwrites", ["nothing", "its input"])
def test_gradients_are_right_at_every_depth(comfy, overwrites, depth):
    (expected, *_), _ = gradients(comfy, "nothing", make=StackOfParts)
    for steps in (1, 2):
        (found, *_), _ = gradients(comfy, overwrites, make=StackOfParts, depth=depth, steps=steps)
        assert torch.allclose(found, expected, rtol=1e-12)


def test_a_block_that_writes_over_what_it_gives_to_a_part_is_an_error_with_a_remedy(comfy):
    errors = comfy.pack_module("sara_core.errors")
    with pytest.raises(errors.UnsupportedModelError, match="set checkpoint_depth to 1"):
        gradients(comfy, "a part's input", make=StackOfParts, depth=2, steps=2)
    gradients(comfy, "a part's input", make=StackOfParts, depth=1, steps=2)


def test_at_a_greater_depth_the_parts_are_recomputed_instead_of_the_block(comfy):
    """Of two steps the first finds out whether the block can be taken apart, and is checkpointed as a whole."""
    calls = {}
    for overwrites in ("nothing", "its input"):
        made = []
        gradients(comfy, overwrites, make=lambda how: made.append(StackOfParts(how)) or made[-1], depth=2, steps=2)
        calls[overwrites] = made[0].blocks[0].calls, made[0].blocks[0].attention.calls
    assert calls == {"nothing": (3, 4), "its input": (4, 4)}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("overwrites", ["nothing", "its input", "a saved tensor"])
def test_gradients_are_right(comfy, overwrites, always, steps):
    expected, _ = gradients(comfy, "nothing")
    found, _ = gradients(comfy, overwrites, always, steps)
    for gradient, other in zip(found, expected, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-12)


def test_autograd_alone_refuses_what_is_overwritten(comfy):
    """If it did not, none of this would be needed."""
    for overwrites in ("its input", "a saved tensor"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(comfy, overwrites)


@pytest.mark.parametrize("overwrites, always, calls", [
    ("nothing", True, [4, 4, 4]), ("nothing", False, [3, 3, 3]), ("its input", False, [4, 4, 4]),
])
def test_blocks_are_recomputed_only_where_that_is_needed(comfy, overwrites, always, calls):
    """Without checkpointing the first step finds out; two steps are two forwards and, checkpointed, two more."""
    assert gradients(comfy, overwrites, always, steps=2)[1] == calls


def test_nothing_saved_inside_of_a_block_is_kept(comfy):
    """Three blocks hold their inputs until the backward, and nothing else."""
    checkpointing = comfy.pack_module("nodes.host.training.checkpointing")
    with torch.inference_mode(False), torch.enable_grad():
        model = Stack("nothing")
        for block in model.blocks:
            checkpointing.install(block)
        kept = []

        def pack(tensor):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.ones(4, 8, dtype=torch.float64, requires_grad=True))
        assert len(kept) <= 1  # x * 2, outside of the blocks


def test_inputs_changed_behind_a_blocks_back_are_an_error(comfy):
    pack = comfy.pack_module("sara_core.errors")
    checkpointing = comfy.pack_module("nodes.host.training.checkpointing")
    with torch.inference_mode(False), torch.enable_grad():
        model = Stack("nothing")
        checkpointing.install(model.blocks[1])
        hidden = torch.ones(4, 8, dtype=torch.float64, requires_grad=True) * 1.0
        out = model.blocks[1](hidden, gate=torch.ones(8, dtype=torch.float64))
        hidden += 1
        with pytest.raises(pack.UnsupportedModelError, match="Block"):
            out.sum().backward()


def test_a_block_that_takes_another_way_the_second_time_is_an_error(comfy):
    pack = comfy.pack_module("sara_core.errors")
    checkpointing = comfy.pack_module("nodes.host.training.checkpointing")
    with torch.inference_mode(False), torch.enable_grad():
        block = Block("nothing").double()
        forward = block.forward
        block.forward = lambda x, **options: forward(x, **options) * (x if block.calls > 1 else 1)
        checkpointing.install(block)
        out = block(torch.ones(4, 8, dtype=torch.float64, requires_grad=True), gate=torch.ones(8, dtype=torch.float64))
        with pytest.raises(pack.UnsupportedModelError, match="not compute the same twice.*gradient_checkpointing off"):
            out.sum().backward()
