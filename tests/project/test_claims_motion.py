"""The motions of the claims' bench: clips, their judge, the base, trainings, and the motion module. The icon sets are
not needed."""

import numpy as np
import pytest
import torch

from benchmarks.claims_ import motion, motion_clips, motion_judge, motion_model, motion_module, motion_train, tables
from benchmarks.claims_.training import Settings
from demo import base_unet
from tests.support.small_models import every_bit, same_bits

SETTINGS = Settings(steps=3, batch=2)


def icons(count=20):
    """Squares of so many colours that tell them apart."""
    shades = np.random.RandomState(0).randint(0, 200, (count, 3), np.uint8)
    shape = (motion_clips.ICON, motion_clips.ICON, 3)
    return {f"square-{number}": np.broadcast_to(shade, shape) for number, shade in enumerate(shades)}


def clips(motions, names=None, seed=0):
    return motion_clips.clips(icons(), [(name, one) for name in names or icons() for one in motions], seed)


def test_clips_come_from_their_seed_and_show_the_whole_icon_on_every_frame():
    made, again, others = clips(motion_clips.WAYS), clips(motion_clips.WAYS), clips(motion_clips.WAYS, seed=1)
    assert torch.equal(made.frames, again.frames) and not torch.equal(made.frames, others.frames)
    ink = (1 - made.frames).sum((2, 3, 4))
    assert torch.allclose(ink, ink[:, :1])
    assert made.captions[:2] == ["square 0 moves left", "square 0 moves right"]
    assert motion_clips.NEW not in motion_clips.KNOWN


def test_the_judge_knows_every_way_by_its_track_and_nothing_else():
    asked = list(motion_clips.WAYS)
    frames = clips(asked).frames
    assert motion_judge.motions(frames) == asked * len(icons())
    assert motion_judge.off(frames[asked.index("left") :: len(asked)], "left") < 0.5
    swapped = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still"}
    backwards = motion_judge.motions(frames.flip(1))
    assert [swapped.get(one, "none") for one in asked] * len(icons()) == backwards
    empty, elsewhere = torch.ones_like(frames[:1]), frames[:1].clone()
    elsewhere[:, ::2] = elsewhere[:, ::2].flip(3)
    assert motion_judge.motions(torch.cat([empty, elsewhere])) == ["none", "none"]
    assert motion_judge.off(empty, "left") == motion_clips.SIZE


def test_a_thing_is_known_by_its_icon():
    asked = list(icons())
    frames = clips(["left"]).frames
    assert motion_judge.named(frames, icons(), asked) == 1
    assert motion_judge.named(frames, icons(), asked[1:] + asked[:1]) < 0.4


@pytest.mark.parametrize("space", [motion_model, motion_module], ids=["Wan", "SD1.5"])
def test_pixels_come_back_from_latents(space):
    frames = clips(motion_clips.KNOWN).frames
    if space is motion_module:
        frames = frames.mean(-1, keepdim=True).expand(-1, -1, -1, -1, 3)
    assert torch.allclose(space.unfolded(space.folded(frames)), frames, atol=1e-6)


def test_words_are_vectors_and_no_words_are_zeros():
    both = motion_model.contexts(["square 1 moves left", "square 1 moves up"])
    assert torch.equal(both[0, :3], both[1, :3]) and not torch.equal(both[0, 3], both[1, 3])
    assert not both[:, 4:].any() and not motion_model.contexts([""]).any()


def small():
    torch.manual_seed(0)
    model = motion_model.new(dim=48, ffn_dim=48, num_layers=2)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)  # or nothing before it would have a gradient
    return model.eval()


def test_the_base_s_training_goes_on_where_it_stopped(comfy, tmp_path):
    torch.manual_seed(0)
    models = [motion_model.new(dim=48, ffn_dim=48, num_layers=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plan, done = base_unet.Plan(6, batch=2, learning_rate=1e-2, warm_up=2), []

    def stop(step, _steps, _loss):
        if step == 4:
            raise InterruptedError

    whole = motion_train.train(models[0], icons(), plan, tmp_path / "whole.pt", lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_unet, "SAVE_EVERY", 3)
        with pytest.raises(InterruptedError):
            motion_train.train(models[1], icons(), plan, tmp_path / "stopped.pt", stop)
        gone_on = motion_train.train(models[1], icons(), plan, tmp_path / "stopped.pt", lambda *at: done.append(at[0]))
    assert same_bits(whole, gone_on) and done == [4, 5, 6]


@pytest.fixture(scope="module")
def bench(comfy):
    return motion.Bench(icons(26), small, SETTINGS, judged=3)


def test_the_base_itself_has_no_drift_and_clips_to_judge_by_are_of_other_things(bench):
    measured = bench.measured(None, "none", 0.0, 0)
    assert measured["drift"] == 0 and measured["trained"] == 0 and set(motion.FIGURES) < set(measured)
    names = [*bench.taught, *bench.tuned_by, *bench.judged_by]
    assert len(names) == len(set(names)) == 26


@pytest.mark.parametrize("where", motion.WHERE)
@pytest.mark.parametrize("method", motion.METHODS)
def test_what_is_trained_is_what_was_said_and_within_the_budget(bench, method, where):
    measured = bench.measured(method, where, 1e-2, 0)
    budget = round(motion.SHARE * sum(parameter.numel() for parameter in small().parameters()))
    # A LoRA of rank 1 on every layer of a model this small is more than the budget.
    assert 0.5 * budget < measured["trained"] <= 1.4 * budget and measured["drift"] > 0
    model, before = small().requires_grad_(False), dict(small().named_parameters())
    trainable = motion.trainable_of(model, method, where, budget)
    frames = clips(["round"]).frames[:2]
    noised = motion_model.noised(motion_model.folded(frames))
    motion_model.loss(model, noised, motion_model.contexts(["a", "b"])).backward()
    optimizer = torch.optim.AdamW(trainable.parameters, 1e-2)
    optimizer.step()
    trainable.after_step()
    if method == "SaRA":
        changed = [name for name, now in model.state_dict().items() if not torch.equal(now, before[name])]
    else:
        changed = [name for name, now in model.named_parameters() if now.requires_grad]
    outside = [name for name in changed if "self_attn" not in name]
    assert changed and bool(outside) == (where == "all layers")


def test_the_committed_base_draws_the_motions_asked_and_is_one_of_comfyuis_models(comfy):
    import comfy.sd

    names = "graduation-cap", "tired-face", "spade-suit", "green-square", "cowboy-hat-face", "biohazard"
    asked = [(name, one) for name in names for one in motion_clips.KNOWN]
    frames = motion_model.draw(motion_model.trained(), [motion_clips.caption(*one) for one in asked], seed=0)
    assert motion_judge.share(frames, [one for _, one in asked]) >= 0.8
    loaded = comfy.sd.load_diffusion_model(str(motion_model.FILE)).model
    assert type(loaded).__name__ == "WAN22" and loaded.diffusion_model.text_embedding[0].in_features == 64


@pytest.mark.parametrize("method", motion.METHODS_LONGER)
def test_kept_near_the_base_a_model_leaves_the_motions_that_it_knows_less(bench, monkeypatch, method):
    monkeypatch.setattr(motion, "PRIOR", 100.0)
    far, near = (bench.measured(method + kept, "all layers", 1e-2, 0) for kept in ("", motion.NEAR))
    assert far["trained"] == near["trained"] and 0 < near["drift"] < 0.8 * far["drift"]


def test_with_the_adjustment_and_without_are_two_trainings(bench):
    adjusted, not_adjusted = (bench.measured(one, "all layers", 1e-2, 0) for one in ("SaRA", "SaRA, no adjustment"))
    assert adjusted["drift"] != not_adjusted["drift"]


def test_lines_of_every_method_place_and_seed_make_a_table():
    trained = motion.jobs(None, {(method, where): 1e-3 for where in motion.WHERE for method in motion.METHODS})
    longer = motion.longer_jobs(None, {(method, "all layers"): 1e-3 for method in motion.METHODS_LONGER})
    module = motion.module_job(None)
    assert len(trained) == 1 + len(motion.WHERE) * len(motion.METHODS) * 3
    assert len(longer) == 2 * len(motion.METHODS_LONGER) * 3
    lines = []
    for number, (job, steps) in enumerate([*((job, 120) for job in trained), *((job, 480) for job in longer)]):
        assert job.key["part"] == "motion"
        measured = {figure: number**2 / 10 for figure in motion.FIGURES}
        lines.append({**job.key, "trained": 7, **measured, "made with": {"steps": steps}})
    figures = {name: 0.5 for name in ("trained", "new", "off", "new alone", "off alone", "first loss", "last loss")}
    shown = tables.of_part("motion", [*lines, {**module.key, **figures, "comes back": True}])
    assert "| SD1.5 | 0 | 0.500 | 0.5 | 0.500 | 0.5 | 0.500 | 0.500 | True |" in shown
    assert "| 120 | none | the base |" in shown and "\n| 120 | self-attention | SaRA − LoRA | -1.500 (" in shown
    assert "\n| 480 | all layers | SaRA, no adjustment, kept near − LoRA | " in shown
    tried = motion.tuning_job(None, "LoRA", "all layers", 2).key
    assert tried["seed"] == motion.TUNING_SEED not in motion.SEEDS and tried["rate"] == 10 * motion.MIDDLE_RATE


def test_a_module_is_all_that_is_trained_and_is_loaded_where_modules_are(monkeypatch):
    monkeypatch.setattr(motion_module, "STEPS_DRAWN", 2)
    monkeypatch.setattr(motion_module, "WIDTHS", (16, 16, 16, 16))
    short = Settings(steps=2, batch=1)
    pictures = motion_module.new_picture_model()
    model = motion_module.with_new_module(pictures)
    before = every_bit(model)
    motion_module.train_module(model, icons(), 1e-2, short)
    changed = [name for name, bits in every_bit(model).items() if not torch.equal(bits, before[name])]
    assert changed and all(".motion_modules." in name for name in changed)
    # From diffusers' folder and from a file of AnimateDiff's names, the same clips to the bit.
    assert motion_module.measured(icons(4), short, short)["comes back"] is True


def test_a_module_of_sd15_s_size_has_the_names_that_animatediff_s_files_have():
    from diffusers import MotionAdapter

    with torch.device("meta"):
        state = motion_module.original_names(MotionAdapter().state_dict())
    block = "temporal_transformer.transformer_blocks.0."
    both = "weight", "bias"
    parts = {f"temporal_transformer.{part}.{kind}" for part in ("norm", "proj_in", "proj_out") for kind in both}
    for number in range(2):
        attention = f"{block}attention_blocks.{number}"
        parts |= {f"{attention}.to_{one}.weight" for one in "qkv"}
        parts |= {f"{attention}.to_out.0.weight", f"{attention}.to_out.0.bias", f"{attention}.pos_encoder.pe"}
        parts |= {f"{block}norms.{number}.weight", f"{block}norms.{number}.bias"}
    for part in ("ff_norm", "ff.net.0.proj", "ff.net.2"):
        parts |= {f"{block}{part}.weight", f"{block}{part}.bias"}
    places = [f"down_blocks.{stage}.motion_modules.{number}" for stage in range(4) for number in range(2)]
    places += [f"up_blocks.{stage}.motion_modules.{number}" for stage in range(4) for number in range(3)]
    places += ["mid_block.motion_modules.0"]
    assert set(state) == {f"{place}.{part}" for place in places for part in parts}
    assert state[f"mid_block.motion_modules.0.{block}attention_blocks.1.pos_encoder.pe"].shape == (1, 32, 1280)
