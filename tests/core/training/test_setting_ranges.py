"""What a setting is unless somebody sets it, and how far it can be set. Saved graphs and commands hold such values: a
range may become wider, and a default must not change."""

import pytest

from sara_core.training.settings import SETTINGS, Setting

# Name → default, least, most; of a text and a switch the default alone.
SAID = {
    "count": (5_000_000, 1, 2_147_483_647),
    "threshold": (0.002, 0.0, 10.0),
    "layers": ("all layers",),
    "include": ("",),
    "exclude": ("",),
    "selection_rule": ("smallest",),
    "per_layer": (False,),
    "steps": (500, 1, 1_000_000),
    "batch_size": (1, 1, 1024),
    "grad_accumulation": (1, 1, 1024),
    "learning_rate": (0.0, 0.0, 1.0),
    "optimizer": ("AdamW",),
    "schedule": ("constant",),
    "warmup_steps": (0, 0, 1_000_000),
    "weight_decay": (0.0, 0.0, 10.0),
    "max_grad_norm": (1.0, 0.0, 1000.0),
    "seed": (0, 0, 9_223_372_036_854_775_807),
    "adjust_at": ("0.5",),
    "low_rank_weight": (0.0, 0.0, 1000.0),
    "noise_levels": ("uniform",),
    "noise_level_mean": (0.0, -5.0, 5.0),
    "noise_level_std": (1.0, 0.1, 5.0),
    "min_snr_gamma": (0.0, 0.0, 100.0),
    "noise_range": ("automatic",),
    "noise_from": (0.0, 0.0, 1000.0),
    "noise_to": (0.0, 0.0, 1000.0),
    "caption_dropout": (0.0, 0.0, 1.0),
    "prior_weight": (1.0, 0.0, 100.0),
    "snapshot_every": (500, 0, 1_000_000),
    "snapshots_kept": (1, 1, 1000),
}


def test_every_setting_is_here():
    assert SETTINGS.keys() - SAID.keys() == set()


@pytest.mark.parametrize("name", SAID)
def test_defaults_and_ranges(name):
    setting, (default, *ends) = SETTINGS[name], SAID[name]
    assert setting.default == default and type(setting.default) is type(default)
    assert [end for end in (setting.least, setting.most) if end is not None] == ends
    assert setting.is_number == bool(ends) and setting.is_whole == isinstance(default, int)
    assert setting.help.endswith(".") or setting.help.endswith(")")
    if setting.choices:
        assert setting.default in setting.choices


def test_what_is_a_number_has_a_range():
    assert Setting(0, "None.", 0, 1).is_number and Setting(0.5, "Half.", 0.0, 1.0).is_number
    assert not Setting("", "Words.").is_number and Setting(1, "One.", 0, 2).is_whole
    assert not Setting(1.0, "One.", 0, 2).is_whole
