"""Trainings of the claims' bench, on a model of a few hundred weights: what the candidates of a better default do."""

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.claims_ import better, candidates, choices, costs, methods, parts, plan, protocol, tables, training
from sara_core import SparseDelta
from sara_core.selection.rules import Rule

BUDGET, SETTINGS = 60, training.Settings(steps=12, batch=4)


class Net(torch.nn.Module):
    """Called as a UNet is: noisy latents, timesteps, contexts → noise."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.out = torch.nn.Conv2d(8, 4, 3, padding=1)
        self.text = torch.nn.Linear(16, 8)

    def forward(self, noisy, timesteps, contexts):
        hidden = self.conv(noisy) + self.text(contexts.mean(1))[:, :, None, None] + timesteps.view(-1, 1, 1, 1) / 1000
        return self.out(torch.nn.functional.silu(hidden))


@pytest.fixture(scope="module")
def task():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(8, 4, 8, 8, generator=generator)
    contexts, plain = torch.randn(2, 8, 5, 16, generator=generator).half()
    return training.Task(latents, contexts, plain, torch.zeros(5, 16))


def trained(task, method="SaRA", rate=1e-2, **options):
    return training.train(Net, method, BUDGET, rate, task, 0, SETTINGS, **options)


def changed(model):
    after = {name: tensor for name, tensor in model.named_parameters() if name != "sara_values"}
    return {name: (after[name] != tensor).detach() for name, tensor in Net().named_parameters()}


def distance(model, other):
    ours = dict(model.named_parameters())
    return sum((ours[name] - theirs).square().sum() for name, theirs in other.named_parameters()).sqrt().item()


@pytest.fixture(autouse=True)
def noise_levels(monkeypatch):
    monkeypatch.setattr(training, "sigmas", lambda: torch.linspace(0.03, 14, training.TIMES))


def test_trainings_of_one_seed_are_equal_and_methods_see_the_same_batches(task):
    first, again = trained(task), trained(task)
    assert first.losses == again.losses
    assert trained(task, "LoRA everywhere").losses[0] == pytest.approx(first.losses[0], rel=1e-5)


def test_every_candidate_trains_as_many_elements_within_the_budget_and_is_not_what_is_shipped(task):
    shipped = trained(task)
    for name, options in candidates.CANDIDATES.items():
        found = trained(task, **options)
        count = sum(int(mask.sum()) for mask in changed(found.model).values())
        assert 0.8 * BUDGET < count <= BUDGET + len(methods.layers(Net())), name
        same = all(torch.equal(a, b) for a, b in zip(found.model.parameters(), shipped.model.parameters()))
        assert same == (options == {}), name


def test_the_elements_of_small_effect_are_those_of_weight_times_input():
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.1, 3, 16)
    model, before = torch.nn.Sequential(Net().text), Net().text.weight.detach()
    chosen = methods.sara(model, 10, rule=choices.of_small_effect(model, lambda: model(x)))
    model(x).sum().backward()
    torch.optim.SGD(chosen.parameters, 1.0).step()
    chosen.after_step()
    scores = (before.abs() * x.square().mean(0).sqrt()).flatten()
    moved = (model[0].weight.detach() != before).flatten().nonzero().view(-1)
    assert moved.tolist() == scores.argsort()[:10].sort().values.tolist()


def test_the_steadiest_elements_are_those_whose_gradient_keeps_its_sign_however_small():
    model = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False)).requires_grad_(False)
    gradients = torch.tensor([[9.0, -9, 0.1, 0], [9, 8, 0.1, 0], [-9, 9, 0.1, 0], [9, -9, 0.2, 0]])
    losses = [lambda own=own: model(own).sum() for own in gradients]
    chosen = methods.sara(model, 1, adjust_at=(), rule=choices.steadiest(model, losses))
    assert not model[0].weight.requires_grad
    losses[3]().backward()
    assert chosen.parameters[0].grad.tolist() == pytest.approx([0.2])


def test_the_steepest_of_the_small_are_in_the_smaller_half():
    model = torch.nn.Sequential(torch.nn.Linear(6, 1, bias=False)).requires_grad_(False)
    model[0].weight.data = torch.tensor([[0.1, -0.2, 0.3, -4, 5, 6]])
    slopes = torch.tensor([1.0, 3, -2, 9, 8, 7])

    def loss():
        return model[0](slopes.view(1, 6)).sum()

    rule = Rule(choices.steepest_of_small, needs_loss=True)
    chosen = methods.sara(model, 2, adjust_at=(), rule=rule, loss=loss)
    loss().backward()
    assert chosen.parameters[0].grad.tolist() == [3, -2]


def test_the_average_lags_and_decay_and_prior_keep_near_the_base(task):
    plain = trained(task, adjust_at=())
    base = Net()
    for options in ({"average": 0.98}, {"decay": 10.0}, {"prior": 30.0}):
        lagging = trained(task, adjust_at=(), **options)
        assert distance(lagging.model, base) < 0.99 * distance(plain.model, base), options


def test_averages_are_not_taken_over_an_adjustment(task):
    with pytest.raises(ValueError, match="without an adjustment"):
        trained(task, average=0.9)


def test_noise_levels_are_where_their_names_say():
    even = torch.arange(0.5, 1000) / 1000
    assert training.LEVELS["all"](even).tolist() == list(range(1000))
    low, middle = (training.LEVELS[name](even) for name in ("low", "middle"))
    assert (low < 500).float().mean() > 0.6 and ((middle > 250) & (middle < 750)).float().mean() > 0.6
    assert all(times.min() >= 0 and times.max() <= 999 for times in (low, middle))


def test_candidates_are_halved_and_what_is_shipped_comes_through():
    counts = []

    def measured(one, cells):
        """The score is the better the longer a candidate's name, and best at the second rate; the first cell fails."""
        counts.append(len(cells))
        found = [{**cell._asdict(), "text": len(str(cell.options)) + (cell.rate > 5e-4), "kid": 0.0, "drift": 0.0}
                 for cell in cells]  # fmt: skip
        return [None, *found[1:]]

    lines = candidates.halved(measured, 1e-3)
    first, second = candidates.ROUNDS
    expected = [len(candidates.CANDIDATES) * 2, (first.through + 1) * second.seeds]
    assert counts == expected and len(lines) == sum(counts) - 2
    assert {line["candidate"] for line in lines if line["round"] == 1} >= {"as shipped"}
    assert all(line["rate"] == pytest.approx(1e-3) for line in lines if line["round"])
    longest = sorted(candidates.CANDIDATES, key=lambda name: len(str(tuple(candidates.CANDIDATES[name].items()))))
    assert longest[-1] in {line["candidate"] for line in lines if line["round"] == 1}


def test_candidates_are_tried_at_lower_rates_as_long_as_those_are_better():
    def measured(one, cells):
        return [{**cell._asdict(), "text": -abs(cell.rate - 1e-4), "kid": 0.0, "drift": 0.0} for cell in cells]

    rates = {}
    for line in candidates.halved(measured, 1e-3):
        rates.setdefault((line["round"], line["candidate"]), set()).add(round(line["rate"], 8))
    assert rates[0, "random"] == {1e-3, 0.00031623, 1e-4, 3.162e-05}
    assert {frozenset(own) for (number, _), own in rates.items() if number} == {frozenset({1e-4})}


def test_whole_runs_are_of_candidates_and_shown_by_name_the_best_first():
    cells = candidates.whole_runs(1e-2)
    figures = dict.fromkeys(tables.FIGURES, 0.0)
    lines = [json.loads(json.dumps({**cell._asdict(), **figures, "text": place})) for place, cell in enumerate(cells)]
    shown = [row.split(" | ")[:2] for row in tables.of_part("whole-runs", lines).splitlines()[2:]]
    assert shown == [[f"| {name}", f"{1e-2 * 10 ** (half / 2):.2g}"] for name, half in candidates.WHOLE_RUNS[::-1]]
    assert {(cell.style, cell.share) for cell in cells} == {(protocol.TUNING_STYLE, candidates.SHARE)}
    assert not any(cell.seed in (*protocol.SEEDS, plan.TUNING_SEED) for cell in cells)


def test_ablations_are_options_that_a_training_takes(task):
    of_better = [options for method, options in better.BETTER.values() if method == "SaRA"]
    for name, options in [*parts.ABLATIONS.items(), *enumerate(of_better)]:
        assert len(trained(task, **options).losses) == SETTINGS.steps, name


def test_what_is_kept_has_all_that_was_trained_and_no_more(task, tmp_path):
    for name in ("full", "SaRA", "LoRA everywhere"):
        costs.keep(name, (learnt := trained(task, name)).model, Net(), file := tmp_path / "learnt.safetensors")
        kept = SparseDelta.load(file).nnz if name == "SaRA" else sum(map(torch.numel, load_file(file).values()))
        assert kept == learnt.count, name


def test_a_row_of_costs_compares_within_a_round():
    lora = [{"trained": 5, "step": step, "growth": 1.0, "file": 10} for step in (1.0, 4.0)]
    ours = [{"trained": 1234, "step": step, "growth": 2.0, "file": 3_000_000} for step in (2.0, 2.0)]
    assert costs.row("SaRA", ours, lora) == ["SaRA", "1,234", "2.000", "1.25 (0.50-2.00)", "2", "3.00"]
