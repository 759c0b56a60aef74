#!/bin/sh
# peft 0.21.2: a SHiRA model that ran once is never freed, nor are its base weights.
#
# Expected: after `del model` and gc.collect() nothing of an adapted model is left, as with LoRA.
# Instead: the forward of a SHiRA layer asks "was the user warned about hooks?" through a function behind
# functools.lru_cache(None) whose argument is the layer itself. That cache holds each layer, with the whole base weight,
# to the end of the process. Three models one after another: all three weights are still there. Without a forward, none.
# Why it matters: a loop over seeds, ranks or checkpoints in one process (a sweep, a notebook, a server that loads one
# adapted model after another) grows by a whole base model each time, until memory ends. torch.cuda.empty_cache() cannot
# help. A way out: empty the cache of peft.tuners.shira.layer._warn_once_about_module_hooks after each model.
# Seen 2026-11.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
trap 'exit 1' INT TERM
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 peft==0.21.2
"$dir/venv/bin/python" -W ignore - <<'END'
import gc
import sys
import weakref
from importlib.metadata import version

import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from peft.tuners.shira.layer import _warn_once_about_module_hooks


def base_weights_left(config, forward=True):
    """Of three models made, run and deleted one after another: how many base weights are still in memory."""
    weights = []
    for _ in range(3):
        base = torch.nn.Sequential(torch.nn.Linear(512, 512))
        weights.append(weakref.ref(base[0].weight))
        model = get_peft_model(base, config)
        if forward:
            model(torch.ones(2, 512)).sum().backward()
        del base, model
        gc.collect()
    return sum(weight() is not None for weight in weights)


lora = base_weights_left(LoraConfig(target_modules=["0"], r=4))
unused = base_weights_left(ShiraConfig(target_modules=["0"], r=4), forward=False)
shira = base_weights_left(ShiraConfig(target_modules=["0"], r=4))
cached = _warn_once_about_module_hooks.cache_info().currsize
_warn_once_about_module_hooks.cache_clear()
gc.collect()

print(f"torch {version('torch')}, peft {version('peft')}: base weights left of three deleted models")
print(f"LoRA {lora}, SHiRA without a forward {unused}, SHiRA after a forward {shira} ({cached} layers in the cache)")
as_stated = (lora, unused, shira, cached) == (0, 0, 3, 3)
sys.exit(0 if as_stated else "This is no longer so.")
END
