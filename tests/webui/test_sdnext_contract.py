"""What we rely on in SD.Next's sources: names, signatures and who calls whom, read without running anything. The fake
of the other tests is written by the same rules."""

import ast
import os

import pytest

from tests.webui.contract import function, parameter_names

_OFFLOAD = "modules/sd_offload.py"
_NETWORKS, _LORA = "modules/extra_networks.py", "modules/lora/extra_networks_lora.py"
# File, function or method, names of its parameters: what we call, or stand around.
SIGNATURES = [
    (_NETWORKS, "activate", "p extra_network_data step include exclude"),
    (_NETWORKS, "deactivate", "p extra_network_data force"),
    (_NETWORKS, "register_extra_network", "extra_network"),
    (_NETWORKS, "ExtraNetwork.deactivate", "self p force"),
    ("modules/sd_models.py", "unload_model_weights", "op"),
    ("modules/processing_class.py", "StableDiffusionProcessing.comment", "self text"),
    ("modules/script_callbacks.py", "on_before_ui", "callback"),
    ("modules/script_callbacks.py", "on_script_unloaded", "callback"),
    ("modules/script_callbacks.py", "on_infotext_pasted", "callback"),
    ("modules/script_callbacks.py", "on_ui_tabs", "callback"),
    ("modules/script_callbacks.py", "on_app_started", "callback"),
    ("modules/script_callbacks.py", "app_started_callback", "demo app"),
    # Training.
    ("modules/shared_state.py", "State.begin", "self title task_id api"),
    ("modules/shared_state.py", "State.end", "self task_id api"),
    ("modules/modeldata.py", "get_model_type", "pipe"),
    (_OFFLOAD, "disable_offload", "sd_model"),
    (_OFFLOAD, "set_diffuser_offload", "sd_model op quiet force"),
    ("modules/sd_models.py", "move_model", "model device force"),
    ("modules/devices.py", "bypass_sdpa_hijacks", ""),
    ("modules/sd_checkpoint.py", "list_models", ""),
]  # fmt: skip
# File, function or method, a piece of code that must be in it.
CODE = [
    (_NETWORKS, "activate", "if p.disable_extra_networks"),
    (_NETWORKS, "activate", "extra_network_data = extra_network_data or p.network_data"),
    (_NETWORKS, "activate", "extra_network.activate(p, extra_network_args, step=step)"),
    (_NETWORKS, "activate", "extra_network.activate(p, [])"),
    (_NETWORKS, "activate_filtered", "activate(p, extra_network_data, step=step, exclude=exclude)"),
    (_NETWORKS, "deactivate", "extra_network.deactivate(p, force=force)"),
    ("modules/processing_diffusers.py", "process_base", "extra_networks.activate_filtered(p)"),
    ("modules/processing_diffusers.py", "process_hires", "extra_networks.activate_filtered(p)"),
    # LoRAs are in the weights, and subtracted; with the same ones again nothing is written.
    ("modules/lora/lora_apply.py", "network_add_weights", "lora_weights *= -1"),
    (_LORA, "ExtraNetworkLora.activate", "networks.network_deactivate(include, exclude)"),
    (_LORA, "ExtraNetworkLora.changed", "len(requested) != len(loaded)"),
    (_LORA, "ExtraNetworkLora.changed", "shared.opts.lora_force_reload"),
    # They are known by what was left out when they were put on; with others left out none is.
    (_LORA, "ExtraNetworkLora.changed", "loaded = sd_model.loaded_loras.get(key, [])"),
    (_NETWORKS, "activate_filtered", "apply_te = getattr(p, 'lora_apply_te', None)"),
    # Its page shows comments that it has made itself, and its console what named loggers say.
    ("modules/processing.py", "process_images_inner", "results = get_processed(p, images_list"),
    ("modules/processing.py", "process_images_inner", "comments='\\n'.join(comments)"),
    ("modules/txt2img.py", "txt2img", "plaintext_to_html(processed.comments)"),
    ("modules/logger.py", "setup_logging", "handlers=[logging.NullHandler()]"),
    ("webui.py", "webui", "log_item.handlers = log.handlers"),
    # What the text encoders made is kept by prompt and tags.
    ("modules/prompt_parser_diffusers.py", "PromptEmbedder.checkcache", "en_data = p.network_data"),
    ("modules/prompt_parser_diffusers.py", "PromptEmbedder.checkcache", "cache.clear()"),
    ("modules/sd_models.py", "unload_model_weights", "move_model(model_data.sd_model, 'meta')"),
    ("modules/modeldata.py", "ModelData.get_sd_model", "self.sd_model"),
    # Training: whatever begins forgets that it was to be interrupted.
    ("modules/shared_state.py", "State.begin",
     "self.interrupted = self.interrupted if title.startswith('Save') else False"),
    ("modules/shared_state.py", "State.interrupt", "self.interrupted = True"),
    # A model whose hooks are off is not given them again without force.
    (_OFFLOAD, "disable_offload", "if not getattr(sd_model, 'has_accelerate', False)"),
    (_OFFLOAD, "apply_balanced_offload", "if cached and shared.opts.diffusers_offload_pre"),
    (_OFFLOAD, "set_diffuser_offload", "apply_balanced_offload(sd_model, force=force)"),
    (_OFFLOAD, "set_diffuser_offload", "shared.opts.diffusers_offload_mode == 'sequential'"),
    (_OFFLOAD, "set_diffuser_offload", "shared.opts.diffusers_offload_mode == 'group'"),
    # Methods of diffusers' are exchanged for others, which move models and hide errors.
    ("modules/sd_hijack_vae.py", "init_hijack", "pipe.vae.orig_encode = pipe.vae.encode"),
    ("modules/sd_hijack_vae.py", "init_hijack", "pipe.vae.orig_decode = pipe.vae.decode"),
    ("modules/sd_hijack_vae.py", "hijack_vae_encode", "apply_balanced_offload(shared.sd_model, exclude=['vae'])"),
    ("modules/sd_hijack_te.py", "init_hijack", "pipe.orig_encode_prompt = pipe.encode_prompt"),
    ("modules/sd_hijack_freeu.py", "apply_freeu", "shared.sd_model.enable_freeu("),
    ("modules/attention.py", "set_diffusers_attention", "pipe.unet.set_attn_processor(attention)"),
    ("modules/modeldata.py", "get_model_type", "model_type = 'sdxl'"),
    ("modules/lora/extra_networks_lora.py", "ExtraNetworkLora.activate",
     "l.previously_loaded_networks = l.loaded_networks.copy()"),
    # Users of the HTTP interface.
    ("modules/api/api.py", "Api.__init__", "shared.cmd_opts.auth.split(',')"),
    ("modules/api/api.py", "Api.__init__", "open(shared.cmd_opts.auth_file"),
]  # fmt: skip


def _found(file, name):
    checkout = os.environ.get("SDNEXT_DIR")
    if checkout is None:
        pytest.skip("SDNEXT_DIR (a checkout) is not set")
    found = function(checkout, file, name)
    assert found is not None
    return found


@pytest.mark.parametrize(("file", "name", "parameters"), SIGNATURES)
def test_a_function_has_the_parameters_that_we_give_it(file, name, parameters):
    assert parameter_names(_found(file, name)) == parameters.split()


@pytest.mark.parametrize(("file", "name", "code"), CODE)
def test_the_host_does_what_we_rely_on(file, name, code):
    assert code in ast.unparse(_found(file, name))
