"""The pieces of the claims' bench: names, budgets, methods, measures. The icon sets are not needed."""

import torch

from benchmarks.claims_ import icon_sets, methods, names, protocol
from benchmarks.claims_.measures import fid, kid

BUDGET = 700


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(24, 16, bias=False)

    def forward(self, x):
        return self.to_q(x)


class Net(torch.nn.Module):
    """Layers that are called as a UNet's are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, 16, 3, padding=1)
        self.attn1 = Attention()
        self.ff = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16))

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attn1(tokens)
        context = self.attn1.to_k(torch.ones(1, 24))
        return (tokens + self.ff(tokens) + context).mean(1)


def test_flags_and_skin_tones_are_left_out_and_a_fifth_is_held_out_for_ever():
    given = ["dog-face", "flag-france", "black-flag", "boy-tone1", "man-medium-skin-tone", "keycap-2", "3", "red-apple"]
    assert names.usable(given) == ["dog-face", "red-apple"]
    assert names.caption("dog-face", "noto style") == "noto style, dog face"
    many = [f"name-{number}" for number in range(2000)]
    held = [name for name in many if names.is_held_out(name)]
    assert 0.17 < len(held) / len(many) < 0.23 and held[:3] == ["name-1", "name-4", "name-8"]


def test_every_method_begins_with_the_base_model_and_stays_within_its_budget():
    x, base = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1)), Net()
    with torch.no_grad():
        expected = base(x)
    for name, method in methods.METHODS.items():
        model = Net().requires_grad_(False)
        trainable = method(model, BUDGET)
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-6), name
        if name == "full":
            assert trainable.count == sum(parameter.numel() for parameter in base.parameters())
        else:
            slack = 0.15 if name in ("DoRA", "SHiRA") else 0
            assert 0.75 * BUDGET < trainable.count <= (1 + slack) * BUDGET, (name, trainable.count)
        loss = model(x).square().sum()
        loss.backward()
        gradients = [parameter.grad for parameter in trainable.parameters if parameter.grad is not None]
        assert any(gradient.abs().sum() for gradient in gradients), name


def test_sara_trains_the_smallest_and_writes_them():
    model, base = Net().requires_grad_(False), Net()
    trainable = methods.sara(model, BUDGET, adjust_at=(0.5,), low_rank_weight=1e-4)
    model(torch.ones(1, 4, 5, 5)).square().sum().backward()
    optimizer = torch.optim.AdamW(trainable.parameters, 1e-2, weight_decay=0)
    trainable.before_step(0, 4, optimizer)
    optimizer.step()
    trainable.after_step()
    changed = sum(int((a != b).sum()) for a, b in zip(base.state_dict().values(), model.state_dict().values()))
    assert 0.9 * BUDGET < changed <= BUDGET


def test_the_largest_scores_are_chosen_over_all_weights_together():
    from sara_core import SaRA

    model = Net()
    scores = {name: torch.rand(p.shape) for name, p in model.named_parameters()}
    optimizer = SaRA(model, count=50, rule=methods.largest_of(scores))
    layer = {name: scores[name] for name in optimizer.delta().entries}
    all_scores = torch.cat([score.flatten() for name, score in scores.items() if name.endswith("weight")])
    threshold = all_scores.sort().values[-50]
    for name, entry in optimizer.delta().entries.items():
        assert (layer[name].flatten()[entry.indices.long()] >= threshold).all()


def test_equal_features_have_no_distance_and_others_have_one():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 300, 16, generator=generator)
    assert abs(fid(ours, ours)) < 1e-3 < fid(ours, theirs + 1)
    assert kid(ours, theirs) < kid(ours, theirs + 1) and kid(ours, theirs) == kid(ours, theirs)


def test_the_protocol_names_only_what_there_is():
    assert {protocol.TUNING_STYLE, *protocol.STYLES} < {icons.name for icons in icon_sets.ALL}
    assert protocol.TUNING_STYLE not in protocol.STYLES and set(protocol.T1_STYLES) <= set(protocol.STYLES)
    assert set(protocol.MIDDLE_RATE) == {*methods.METHODS, "LT-SFT"} and len(protocol.TRIES) == 5
    assert protocol.TRIES[2] == 1
