"""What we rely on in AUTOMATIC1111's sources: names, signatures and who calls whom, read without running anything.

The fake of the other tests is written by the same rules.
"""

import ast
from pathlib import Path

import pytest

from tests.webui.contract import function
from tests.webui.fakes.hosts_lora import CHECKOUT

pytestmark = pytest.mark.skipif(CHECKOUT is None, reason="A1111_DIR (a checkout of 1.10.1) is not set")
_LORA = "extensions-builtin/Lora"

# File, function or method, its parameters: what we call, or stand around.
SIGNATURES = [
    ("modules/extra_networks.py", "activate", "p, extra_network_data"),
    ("modules/extra_networks.py", "register_extra_network", "extra_network"),
    ("modules/extra_networks.py", "ExtraNetwork.__init__", "self, name"),
    ("modules/extra_networks.py", "ExtraNetwork.activate", "self, p, params_list"),
    ("modules/extra_networks.py", "ExtraNetwork.deactivate", "self, p"),
    ("modules/sd_models.py", "load_model_weights", "model, checkpoint_info: CheckpointInfo, state_dict, timer"),
    ("modules/sd_models.py", "send_model_to_trash", "m"),
    ("modules/processing.py", "StableDiffusionProcessing.comment", "self, text"),
    ("modules/script_callbacks.py", "on_before_ui", "callback, *, name=None"),
    ("modules/script_callbacks.py", "on_script_unloaded", "callback, *, name=None"),
    ("modules/script_callbacks.py", "on_infotext_pasted", "callback, *, name=None"),
    (f"{_LORA}/networks.py", "load_networks", "names, te_multipliers=None, unet_multipliers=None, dyn_dims=None"),
    (f"{_LORA}/networks.py", "network_forward", "org_module, input, original_forward"),
    (f"{_LORA}/networks.py", "process_network_files", "names: list[str] | None=None"),
    (f"{_LORA}/networks.py", "list_available_networks", ""),
    (f"{_LORA}/network.py", "NetworkOnDisk.__init__", "self, name, filename"),
    (f"{_LORA}/network.py", "NetworkOnDisk.detect_version", "self"),
    (f"{_LORA}/ui_extra_networks_lora.py", "ExtraNetworksPageLora.allowed_directories_for_previews", "self"),
]  # fmt: skip
_KINDS = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "MultiheadAttention")
# File, function or method, a piece of code that must be in it.
CODE = [
    # Networks are activated through the module, for every batch, for the second pass and with every model.
    ("modules/processing.py", "process_images_inner", "extra_networks.activate(p, p.extra_network_data)"),
    ("modules/processing.py", "process_images_inner", "sd_models.reload_model_weights()"),
    ("modules/processing.py", "StableDiffusionProcessingTxt2Img.sample_hr_pass",
     "extra_networks.activate(self, self.hr_extra_network_data)"),
    ("modules/processing.py", "StableDiffusionProcessingTxt2Img.setup_conds",
     "extra_networks.activate(self, self.extra_network_data)"),
    ("modules/sd_models.py", "get_empty_cond", "extra_networks.activate(p, {})"),
    ("modules/sd_models.py", "load_model", "get_empty_cond(sd_model)"),
    # Whoever fails is called again without tags.
    ("modules/extra_networks.py", "activate", "extra_network.activate(p, extra_network_args)"),
    ("modules/extra_networks.py", "activate", "activated.append(extra_network)"),
    ("modules/extra_networks.py", "activate", "extra_network.activate(p, [])"),
    # What an encoded prompt is kept by.
    ("modules/processing.py", "StableDiffusionProcessing.cached_params", "extra_network_data"),
    ("modules/processing.py", "StableDiffusionProcessing.get_conds_with_caching", "cache[0] = cached_params"),
    ("modules/processing.py", "StableDiffusionProcessing.__post_init__",
     "self.cached_c = StableDiffusionProcessing.cached_c"),
    ("modules/processing.py", "StableDiffusionProcessingTxt2Img.__post_init__",
     "self.cached_hr_c = StableDiffusionProcessingTxt2Img.cached_hr_c"),
    # Another checkpoint goes into the same layers, or the old ones are let go.
    ("modules/sd_models.py", "reload_model_weights",
     "load_model_weights(sd_model, checkpoint_info, state_dict, timer)"),
    ("modules/sd_models.py", "load_model", "send_model_to_trash(model_data.sd_model)"),
    ("modules/sd_models.py", "load_model_weights", "model.load_state_dict(state_dict, strict=False)"),
    ("modules/sd_models.py", "send_model_to_trash", "m.to(device='meta')"),
    # What is kept and compared of a layer.
    (f"{_LORA}/networks.py", "network_apply_weights", "getattr(self, 'network_current_names', ())"),
    (f"{_LORA}/networks.py", "network_apply_weights",
     "tuple(((x.name, x.te_multiplier, x.unet_multiplier, x.dyn_dim) for x in loaded_networks))"),
    (f"{_LORA}/networks.py", "network_apply_weights", "weights_backup is None and wanted_names != ()"),
    (f"{_LORA}/networks.py", "network_apply_weights", "current_names != wanted_names"),
    (f"{_LORA}/networks.py", "network_apply_weights", "network_restore_weights_from_backup(self)"),
    (f"{_LORA}/networks.py", "network_forward", "network_restore_weights_from_backup(org_module)"),
    (f"{_LORA}/networks.py", "network_forward", "network_reset_cached_weight(org_module)"),
    (f"{_LORA}/networks.py", "network_reset_cached_weight", "self.network_weights_backup = None"),
    (f"{_LORA}/networks.py", "network_reset_cached_weight", "self.network_bias_backup = None"),
    *((f"{_LORA}/networks.py", f"network_{kind}_forward", "network_apply_weights(self)") for kind in _KINDS),
    *((f"{_LORA}/networks.py", f"network_{kind}_load_state_dict", "network_reset_cached_weight(self)")
      for kind in _KINDS),
    # Every way to a file goes through what we stand around.
    (f"{_LORA}/extra_networks_lora.py", "ExtraNetworkLora.activate",
     "networks.load_networks(names, te_multipliers, unet_multipliers, dyn_dims)"),
    (f"{_LORA}/networks.py", "list_available_networks", "process_network_files()"),
    (f"{_LORA}/networks.py", "assign_network_names_to_compvis_modules",
     "sd_model.network_layer_mapping = network_layer_mapping"),
    (f"{_LORA}/network.py", "NetworkOnDisk.__init__", "self.sd_version = self.detect_version()"),
    (f"{_LORA}/ui_extra_networks_lora.py", "ExtraNetworksPageLora.refresh", "networks.list_available_networks()"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "name", "parameters"), SIGNATURES, ids=lambda value: value[:40])
def test_a_function_has_the_parameters_that_we_give_it(file, name, parameters):
    found = function(CHECKOUT, file, name)
    assert found is not None
    assert ast.unparse(found.args) == parameters


@pytest.mark.parametrize(("file", "name", "code"), CODE, ids=lambda value: value[:40])
def test_the_host_does_what_we_rely_on(file, name, code):
    found = function(CHECKOUT, file, name)
    assert found is not None
    assert code in ast.unparse(found)


def test_forwards_of_layers_find_our_functions():
    """They look them up in their module, where ours are, each time."""
    text = Path(CHECKOUT, _LORA, "networks.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert "network_apply_weights" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not any(
        isinstance(node, ast.ImportFrom) and node.module == "networks"
        for path in Path(CHECKOUT, _LORA).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
