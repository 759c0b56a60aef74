"""Stands in for torchao's optimizers, without their compiler: moments in blocks where the length allows it, in tensors
of a class of their own that only some operations know; a learning rate that is a tensor and must stay one."""

import torch


class Blocks(torch.Tensor):
    """A vector in 8 bits and a scale for each block, as torchao's OptimState8bit: few operations, and no bytes."""

    @staticmethod
    def __new__(cls, codes, scale, qmap, signed):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32, device=codes.device)

    def __init__(self, codes, scale, qmap, signed):
        self.codes, self.scale, self.qmap, self.signed = codes, scale, qmap, signed

    def __tensor_flatten__(self):
        return ["codes", "scale", "qmap"], [self.signed]

    def numbers(self):
        """fp32 [n]"""
        return (self.qmap[self.codes.long()].view(len(self.scale), -1) * self.scale[:, None]).view(-1)

    def take(self, values):
        """Keep fp32 [n] as nearly as 8 bits can."""
        blocks = values.view(len(self.scale), -1)
        self.scale.copy_(blocks.abs().amax(1))
        shares = (blocks / self.scale.clamp_min(1e-30)[:, None]).view(-1)
        self.codes.copy_((shares * 127 + 128).round().to(torch.uint8))

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        this, *others = arguments
        if function is torch.ops.aten.copy_.default:
            this.take(others[0])
            return this
        if function is torch.ops.aten._to_copy.default:
            return Blocks(this.codes.clone(), this.scale.clone(), this.qmap, this.signed)
        if function is torch.ops.aten.detach.default:
            return Blocks(this.codes, this.scale, this.qmap, this.signed)
        raise NotImplementedError(f"{function} of moments in blocks")


class AdamW8bit(torch.optim.Optimizer):
    """As torchao.optim.AdamW8bit."""

    __module__ = "torchao.optim.adam"

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, block_size=256):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.block_size = block_size

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = torch.as_tensor(self.param_groups[-1]["lr"], dtype=torch.float32)

    def _new_buffer(self, p, signed):
        if p.numel() < 4096 or p.numel() % self.block_size:
            return torch.zeros_like(p)
        codes = torch.full(p.shape, 128, dtype=torch.uint8)
        return Blocks(codes, torch.zeros(p.numel() // self.block_size), (torch.arange(256) - 128) / 127, signed)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if not isinstance(group["lr"], torch.Tensor):
                raise RuntimeError("lr was changed to a non-Tensor object.")
            for p in group["params"]:
                state, grad = self.state[p], p.grad
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = self._new_buffer(p, True), self._new_buffer(p, False)
                state["step"] += 1
                moments = []
                for kept, new, beta in zip(
                    (state["exp_avg"], state["exp_avg_sq"]), (grad, grad.square()), group["betas"]
                ):
                    moments.append(torch.lerp(kept.numbers() if type(kept) is Blocks else kept, new, 1 - beta))
                    kept.copy_(moments[-1])
                first, second = (m / (1 - beta ** state["step"]) for m, beta in zip(moments, group["betas"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * first / (second.sqrt() + group["eps"]))
