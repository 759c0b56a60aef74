"""The pieces of the claims' bench: names, budgets, methods, measures. The icon sets are not needed."""

import json
import threading

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.claims_ import (
    base,
    changes,
    choices,
    curves,
    icon_sets,
    lines,
    methods,
    names,
    parts,
    plan,
    premise,
    protocol,
    render,
    subject,
    tables,
    tuning,
    vlhi,
)
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


def test_the_base_learns_names_alone_and_behind_words_that_are_no_sets():
    assert base.captions("dog-face", 10) == ["dog face", "neat style, dog face", "plain style, dog face"]
    assert not set(base.STYLE_WORDS) & {word for icons in icon_sets.ALL for word in icons.name.split("-")}
    contexts = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 77, 4).half()
    pictures = base.NamedPictures(torch.arange(2.0).view(2, 1, 1, 1), contexts, torch.full((77, 4), -1.0))
    torch.manual_seed(0)
    latents, drawn = pictures.draw(300)
    seen = {(int(latent), int(context[0, 0])) for latent, context in zip(latents.flatten(), drawn)}
    assert seen == {(0, -1), (1, -1), *((row, 3 * row + form) for row in range(2) for form in range(3))}


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
    optimizer = SaRA(model, count=50, rule=choices.largest_of(scores))
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
    assert set(protocol.MIDDLE_RATE) == {*methods.METHODS, "LT-SFT"}


def line(method, seed, style="openmoji", share=0.023, **figures):
    return {"method": method, "share": share, "style": style, "seed": seed, **figures}


def test_differences_are_of_pairs_and_clear_only_if_their_interval_excludes_nothing():
    given = [line("LoRA", seed, kid=10.0 * seed, text=0.5, drift=0.1) for seed in range(6)]
    given += [line("SaRA", seed, kid=10.0 * seed - 2 - 0.1 * seed, text=0.5 + (-1) ** seed / 100, drift=0.1)
              for seed in range(6)]  # fmt: skip
    kid, text, drift = (tables.paired(given, "SaRA", figure) for figure in ("kid", "text", "drift"))
    assert kid.mean == pytest.approx(-2.25) and kid.is_clear and kid.p == pytest.approx(2 / 2**6) and kid.pairs == 6
    assert text.mean == pytest.approx(0) and not text.is_clear and text.p == 1
    assert drift == (0, 0, 0, 1, 6)
    # Another style's runs have no partner.
    assert tables.paired([*given, line("SaRA", 0, style="fxemoji", kid=1e6)], "SaRA", "kid") == kid
    assert tables.paired(given, "DoRA", "kid") is None
    shown = tables.differences(given)
    assert "**-2.2 (" in shown and "| 6 |" in shown and "**" not in shown.split("|")[-4]


def test_a_tier_has_every_method_in_every_style_and_seed_once_at_its_own_rate():
    cells = plan.cells("T1", {(method, 0.023): 1.0 if method == "LoRA" else 2.0 for method in plan.PAPERS})
    assert len(cells) == len(set(cells)) == 5 * 3 * 3
    assert {cell.rate for cell in cells if cell.method == "LoRA"} == {1.0}
    # The first five are a whole comparison.
    assert {cell.method for cell in cells[:5]} == set(plan.PAPERS) and len({cell[1:4] for cell in cells[:5]}) == 1


def test_a_rate_is_tuned_on_a_style_and_a_seed_of_its_own():
    tried = plan.tuning("SaRA", 0.023, 1)
    assert tried.style == protocol.TUNING_STYLE and tried.seed not in protocol.SEEDS
    assert tried.rate == pytest.approx(protocol.MIDDLE_RATE["SaRA"] * 10**0.5)
    assert len(plan.tuned("T2")) == len(set(plan.tuned("T2"))) == 4 * 2

    def line(rate, kid, **other):
        return {**tried._asdict(), "options": [], "rate": rate, "text": 0.5, "kid": kid, "drift": 0.1, **other}

    others = [line(3, 1, seed=0), line(4, 1, method="LoRA"), line(5, 1, options=[["a", 1]])]
    known = [*others, line(1, 100), line(2, 50), *(line(rate, 200) for rate in (6, 7, 8))]
    assert plan.best_known_rate(known, "SaRA", 0.023) == 2
    # A search that was stopped says nothing yet.
    assert plan.best_known_rate(known[:-1], "SaRA", 0.023) == protocol.MIDDLE_RATE["SaRA"]
    assert plan.best_known_rate(known, "SaRA", 0.058) == protocol.MIDDLE_RATE["SaRA"]


@pytest.mark.parametrize(
    "peak, tried",
    [(0.1, [-2, 0, 2, 1, -1]), (-0.7, [-2, 0, 2, 1, -1]), (1.2, [-2, 0, 2, 4, 3]), (5.9, [-2, 0, 2, 4, 6]),
     (2.9, [-2, 0, 2, 4, 3]), (-9, [-2, 0, 2, -4, -6]), (-2.1, [-2, 0, 2, -4, -1])],
)  # fmt: skip
def test_the_search_for_a_rate_goes_where_scores_rise(peak, tried):
    asked = []

    def scores(tries):
        asked.extend(half for name, half in tries if name == "this")
        return [-abs(half - (peak if name == "this" else 0)) for name, half in tries]

    found = tuning.best(["this", "other"], scores)
    assert asked == tried and found["this"] == min(tried, key=lambda half: abs(half - peak)) and found["other"] == 0


def test_a_run_goes_on_behind_the_last_whole_line_and_trusts_no_other_base(tmp_path):
    file, asked = tmp_path / "lines.jsonl", []

    def jobs(numbers):
        def measure(number):
            asked.append(number)
            return {"kid": len(asked)}

        cells = (protocol.Cell("SaRA", 0.1, "noto", n, 1e-3, (("adjust_at", (0.5,)),)) for n in numbers)
        return [lines.Job(cell._asdict(), lambda seed=cell.seed: measure(seed)) for cell in cells]

    first = lines.run(jobs(range(2)), {"base": "a"}, file, say=lambda text: None)
    file.write_text(file.read_text()[:-20])
    again = lines.run(jobs(range(3)), {"base": "a"}, file, say=lambda text: None)
    assert asked == [0, 1, 1, 2] and again[0] == first[0] and [line["kid"] for line in again] == [1, 3, 4]
    lines.run(jobs(range(3)), {"base": "b"}, file, say=lambda text: None)
    assert asked == [0, 1, 1, 2, 0, 1, 2]
    # The other base's lines stay, and are found again.
    assert lines.run(jobs(range(3)), {"base": "a"}, file, say=lambda text: None) == again


def test_jobs_are_waited_for_together_and_each_is_a_line(tmp_path):
    file, both = tmp_path / "lines.jsonl", threading.Barrier(2, timeout=20)

    def job(number):
        return lines.Job({"seed": number}, lambda: {"kid": number * both.parties + 0 * both.wait()})

    found = lines.run([job(1), job(2)], {"base": "a"}, file, say=lambda text: None, at_once=2)
    assert [line["kid"] for line in found] == [2, 4]
    assert sorted(line["seed"] for line in lines.read(file)) == [1, 2]


def test_a_line_is_found_by_all_of_its_key():
    known = [{"method": "SaRA", "options": [["adjust_at", [0.5]]], "kid": 1},
             {"method": "SaRA", "options": [], "kid": 2}]  # fmt: skip
    assert lines.of(known, {"method": "SaRA", "options": (("adjust_at", (0.5,)),)}) == known[0]
    assert lines.of(known, {"method": "SaRA", "options": ()}) == known[1]
    assert lines.of(known, {"method": "LoRA"}) is None


def test_changes_of_sara_and_of_lora_give_the_trained_model_back():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    for name in ("SaRA", "LoRA", "LoRA everywhere", "full"):
        model = Net().requires_grad_(False)
        trainable = methods.METHODS[name](model, BUDGET)
        optimizer = torch.optim.AdamW(trainable.parameters, 1e-2, weight_decay=0)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
            trainable.after_step()
        found = changes.changes_of(model, Net())
        with torch.no_grad():
            expected, base = model(x), Net()(x)
            assert not torch.allclose(expected, base, atol=1e-3), name
            assert torch.allclose(changes.add(Net(), found)(x), expected, atol=1e-5), name
            assert torch.equal(changes.add(Net(), found, 0.0)(x), base), name
        same = changes.dense(changes.sparse(found))
        assert all(torch.equal(same[name], change) for name, change in found.items())


def test_an_adaptformer_is_no_change_of_weights():
    model = Net().requires_grad_(False)
    methods.adaptformer(model, BUDGET)
    with pytest.raises(ValueError, match="no weight of the base"):
        changes.changes_of(model, Net())


def test_the_premise_zeroes_the_smallest_those_above_them_or_random_ones():
    def zeroed(chosen, names=None):
        model = Net()
        theta, count = premise.zero(model, 0.1, chosen, names)
        weights = {name: module.weight for name, module in methods.layers(model).items()}
        assert count == sum(int((weight == 0).sum()) for weight in weights.values())
        return theta, count, weights

    before = {name: module.weight for name, module in methods.layers(Net()).items()}
    sizes = torch.cat([weight.flatten().abs() for weight in before.values()]).sort().values
    theta, count, weights = zeroed("smallest")
    assert theta == sizes[count - 1] and count == round(0.1 * len(sizes))
    assert all(torch.equal(weights[name] == 0, before[name].abs() <= theta) for name in before)
    above, _, weights = zeroed("just above")
    assert above == sizes[2 * count - 1]
    assert all(not (weights[name] == 0)[before[name].abs() <= theta].any() for name in before)
    assert zeroed("random")[0] > above
    _, count, weights = zeroed("smallest", ["conv"])
    assert count == round(0.1 * before["conv"].numel())
    assert not any((weight == 0).any() for name, weight in weights.items() if name != "conv")


def test_a_subject_is_the_icon_in_colours_of_its_own_each_time_elsewhere():
    icon = np.full((64, 64, 3), 255, np.uint8)
    icon[20:44, 20:44] = 200, 30, 30
    drawn = subject.pictures(icon, 5, seed=0)
    assert drawn.shape == (5, 64, 64, 3) and drawn.min() >= 0 and drawn.max() <= 1
    assert torch.equal(subject.pictures(icon, 5, seed=0), drawn)
    inside = drawn[:, 32, 32]
    assert (inside[:, 0] < inside.max(1).values).all()  # red no more
    assert len({tuple(corner.tolist()) for corner in drawn[:, 0, 0]}) == 5


def test_vlhi_is_the_paper_s_formula_style_by_style():
    figures = {"A": ((100, 0.5), (10, 0.2)), "B": ((150, 0.6), (20, 0.4)), "C": ((200, 0.3), (30, 0.3))}
    found = [{"method": method, "style": style, "fid": fid + change, "text": text} for method, both in figures.items()
             for style, (fid, text) in zip("xy", both) for change in (-5, 5)]  # fmt: skip
    whole = vlhi.of_pool(found, "ABC")
    expected = {"A": (1 + 2 / 3 + 1 + 0) / 2, "B": (0.5 + 1 + 0.5 + 1) / 2, "C": (0 + 0 + 0 + 0.5) / 2}
    assert whole == pytest.approx(expected)
    assert vlhi.of_pool(found, "AB") == pytest.approx({"A": 1.0, "B": 1.0})
    # A method that lacks a style has no place among the others, and one alone has none at all.
    some = [line for line in found if (line["method"], line["style"]) != ("C", "y")]
    assert vlhi.of_pool(some, "ABC").keys() == {*"AB"}
    assert vlhi.of_pool(found, "A") == {}


def test_vlhi_is_shown_of_whole_pools_only():
    figures = dict.fromkeys(tables.FIGURES, 0.5) | {"trained": 5, "training seconds": 1.0, "share": 0.023, "seed": 0}
    found = [{**figures, "method": method, "style": "x", "fid": place} for place, method in enumerate(plan.PAPERS)]
    assert "| without full fine-tuning |  | 1.00 | 0.67 | 0.33 | 0.00 |" in (shown := tables.of_methods(found))
    assert "| the paper's methods | 1.00 | 0.75 |" in shown
    assert "| the paper's methods |" not in (shown := tables.of_methods(found[1:])) and "VLHI" in shown
    assert "VLHI" not in tables.of_methods(found[:4])


class Jobs:
    """A bench that measures nothing: what the parts ask of it is enough."""

    work = None

    def job(self, cell):
        return lines.Job(cell._asdict(), dict)


def test_every_part_has_a_job_for_everything_that_its_table_shows(monkeypatch):
    monkeypatch.setattr(render, "pictures", lambda icons, folder: ([], []))
    made = {name: jobs(Jobs(), lambda method, share: 1e-3) for name, jobs in parts.PARTS.items()}
    for jobs in made.values():
        keys = [json.dumps(dict(job.key)) for job in jobs]
        assert len(set(keys)) == len(keys)
    figures = {"kid": 1.0, "text": 0.5, "drift": 0.1, "fid": 2.0, "styled": 0.3, "right": 0.4, "leaked": 0.0}
    extra = {
        "premise": {"theta": 1e-3, "zeroed": 5, **figures},
        "ablation": {"trained": 5, "training seconds": 1.0, **figures},
        "strength": figures,
        "subject": {"subject": 0.9, "leaked": 0.2, "drift": 0.1},
        "merging": {"openmoji": figures, "fluent-emoji-flat": figures},
    }
    shown = {
        name: tables.of_part(name, [json.loads(json.dumps({**job.key, **extra[name]})) for job in jobs])
        for name, jobs in made.items()
    }
    assert "| smallest | convolutions | 2.30% | 0.001 |" in shown["premise"]
    assert all(f"| {name} |" in shown["ablation"] for name in parts.ABLATIONS)
    assert "both − neither" in shown["ablation"] and "| LoRA | -0.5 |" in shown["strength"]
    assert "| SaRA | yes | 0.900 | 0.200 | 0.100 | 5 |" in shown["subject"]
    assert "| SaRA | dare | 0.6 | 1.0 |" in shown["merging"] and "| LoRA | sum | 1 |" in shown["merging"]


def test_curves_are_of_all_layers_and_of_strengths_in_their_order():
    of_premise = [{"part": "premise", "chosen": "random", "layers": where, "share": share, "drift": share * 2}
                  for where in ("all", "attention") for share in (0.2, 0.1)]  # fmt: skip
    of_strength = [{"part": "strength", "method": "SaRA", "strength": strength, "drift": 1 - strength, "kid": 7.0,
                    "text": strength / 2}
                   for strength in (1.0, -0.5, 0.25)]  # fmt: skip
    known = [*of_premise, *of_strength, {"method": "SaRA", "strength": 1.0}]
    assert curves.premise(known) == {"random": [(10, 0.2, ""), (20, 0.4, "")]}
    assert curves.strength(known, "kid") == {"SaRA": [(0.75, 7, "0.25"), (0, 7, "1")]}
    assert curves.strength(known, "text") == {"SaRA": [(0.75, 0.125, "0.25"), (0, 0.5, "1")]}
    curves.draw(figure := Figure(), known)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
