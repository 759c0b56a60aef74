"""The claims' bench on another device than the CPU: the same trainings, pictures and figures, and nothing of them left
behind. No GPU is needed (tests/support/other_device.py), and no icon set."""

from contextlib import nullcontext

import pytest
import torch

from benchmarks import claims
from benchmarks.claims import RESULTS
from benchmarks.claims_ import choices, drawing, judge, lines, measures, methods, premise, training
from benchmarks.claims_.training import Settings
from sara_core.delta import delta
from sara_core.tensors import elements
from tests.project.test_claims_training import BUDGET, Net, task  # noqa: F401 (fixture)
from tests.support import other_device

SETTINGS = Settings(steps=6, batch=4)


@pytest.fixture(autouse=True)
def noise_levels(monkeypatch):
    for module in (training, drawing):
        monkeypatch.setattr(module, "sigmas", lambda: torch.linspace(0.03, 14, training.TIMES))


@pytest.fixture
def any_class_is_trained(monkeypatch):
    """SaRA refuses weights of a class of their own, as quantised ones, and asks which autocast a device is in."""
    for module in (delta, elements):
        monkeypatch.setattr(module, "has_own_operations", lambda tensor: False)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)


def there(of):
    """A task on the other device."""
    return training.Task(*(one.to(other_device.NAME) for one in of))


def new_there():
    return Net().to(other_device.NAME)


def test_the_device_refuses_what_a_gpu_refuses():
    with other_device.there():
        theirs, ours = torch.ones(3, device=other_device.NAME), torch.ones(3)
        assert (theirs * 2).tolist() == [2, 2, 2] and (theirs + torch.tensor(1.0)).sum().item() == 6
        assert theirs[torch.tensor([True, False, True])].tolist() == [1, 1]
        for mistake in (lambda: theirs + ours, lambda: torch.cat([theirs, ours]), theirs.numpy):
            with pytest.raises(other_device.DeviceError):
                mistake()
        assert torch.equal(theirs.cpu(), ours)


# No adjustment: it gives the vector other memory, which a tensor of the other device cannot have.
@pytest.mark.parametrize(
    "method, options",
    [("full", {}), ("LoRA everywhere", {"prior": 1.0}), ("LT-SFT", {}), ("SaRA", {"adjust_at": (), "levels": "low"}),
     ("SaRA", {"adjust_at": (), "average": 0.9, "low_rank_weight": 1e-3}), ("SaRA", {"adjust_at": (), "scaled": True}),
     *(("SaRA", {"adjust_at": (), "rule": rule}) for rule in ("random", "small effect", "steep"))],
)  # fmt: skip
def test_a_training_is_the_same_there(task, any_class_is_trained, method, options):  # noqa: F811
    def trained(new_model, given):
        return training.train(new_model, method, BUDGET, 1e-2, given, 0, SETTINGS, **options)

    here = trained(Net, task)
    with other_device.there():
        far = trained(new_there, there(task))
        values = [parameter.cpu() for parameter in far.model.parameters()]
        assert {parameter.device.type for parameter in far.model.parameters()} == {other_device.NAME}
    assert far.losses == pytest.approx(here.losses, rel=1e-4) and far.count == here.count
    for value, parameter in zip(values, here.model.parameters()):
        assert torch.allclose(value, parameter, atol=1e-4)


def test_pictures_are_drawn_there_from_the_same_noise(task, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: asked.append(kind) or nullcontext())
    here = drawing.draw(Net(), task.contexts, task.empty, seed=3)
    with other_device.there():
        far = drawing.draw(new_there(), *(one.to(other_device.NAME) for one in (task.contexts, task.empty)), seed=3)
        assert far.device.type == other_device.NAME
        assert torch.allclose(far.cpu(), here, atol=1e-4)
    assert set(asked) == {"cpu", other_device.NAME}


def test_the_judge_says_the_same_there_of_pictures_from_here():
    names = [f"{one}-{two}" for one in ("red", "blue", "green") for two in ("apple", "dog", "hat")]
    torch.manual_seed(0)
    verdicts = judge.Verdicts(judge.Judge(["apple", "blue", "dog", "green", "hat", "red"]))
    pictures = torch.rand(4, len(names), 64, 64, 3)

    def said():
        return measures.measure(verdicts, "openmoji", *pictures, asked=names, choice=names * 20)

    here = said()
    with other_device.there():
        verdicts.to(other_device.NAME)
        assert said() == pytest.approx(here, rel=1e-3, abs=1e-4)


def test_weights_are_chosen_and_zeroed_there_as_here():
    scores = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(5)) for name, p in weights_of(Net())}
    class Request:
        shares = [(list(scores), 25)]

    here = choices.largest_of(scores)(Request)
    with other_device.there():
        far = choices.largest_of({name: score.to(other_device.NAME) for name, score in scores.items()})(Request)
        assert {name: places.tolist() for name, places in far.items()} == {n: p.tolist() for n, p in here.items()}
    for chosen in premise.CHOICES:
        model = Net()
        expected = premise.zero(model, 0.1, chosen)
        with other_device.there():
            far = new_there()
            assert premise.zero(far, 0.1, chosen) == expected
            assert all(torch.equal(a.cpu(), b) for a, b in zip(far.parameters(), model.parameters()))


def weights_of(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if name.endswith("weight")]


def test_adapters_begin_there_with_the_numbers_they_have_here():
    class Transformer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.ff = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Linear(32, 16))

    def begun(model):
        torch.manual_seed(7)
        return methods.adaptformer(model.requires_grad_(False), 200).parameters

    here = begun(Transformer())
    with other_device.there():
        far = begun(Transformer().to(other_device.NAME))
        assert all(one.device.type == other_device.NAME for one in far)
        assert [one.tolist() for one in far] == [one.tolist() for one in here]


def test_lines_of_another_device_do_not_count_among_those_of_the_cpu(tmp_path):
    from benchmarks.claims_.bench import Bench

    here, far = Bench(tmp_path).made_with, Bench(tmp_path, device="cuda").made_with
    assert "device" not in here and far == {**here, "device": "cuda"}
    assert all(set(line["made with"]) == set(here) for line in lines.read(RESULTS))


def test_the_motions_are_measured_on_the_cpu_only(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["claims", "--part", "motion", "--device", "cuda"])
    with pytest.raises(SystemExit):
        claims.main()
    assert "on the CPU only" in capsys.readouterr().err
