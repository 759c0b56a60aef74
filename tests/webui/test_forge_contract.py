"""What we rely on in the sources of Forge and its kin: names, signatures and who calls whom, read without running
anything. The fakes of the other tests are written by the same rules."""

import ast
import os

import pytest

from tests.webui.contract import function, parameter_names

_NEO, _FORGE, _REFORGE, _CLASSIC = "NEO_DIR", "FORGE_DIR", "REFORGE_DIR", "CLASSIC_DIR"
_LORA, _OLD_LORA = "extensions-builtin/sd_forge_lora", "extensions-builtin/Lora"
_BOTH, _OLDER = (_NEO, _FORGE), (_REFORGE, _CLASSIC)
_ALL = (*_BOTH, *_OLDER)
_ATTENTION, _UTIL = "ldm_patched/ldm/modules/attention", "ldm_patched/ldm/modules/diffusionmodules/util"
_UNET = "ldm_patched/ldm/modules/diffusionmodules/openaimodel"

# Of which hosts, file, function or method, names of its parameters: what we call, or stand around.
SIGNATURES = [
    (_ALL, "modules/extra_networks.py", "activate", "p extra_network_data"),
    (_ALL, "modules/extra_networks.py", "register_extra_network", "extra_network"),
    (_ALL, "modules/extra_networks.py", "ExtraNetwork.activate", "self p params_list"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessing.comment", "self text"),
    ((*_BOTH, _REFORGE), "modules/script_callbacks.py", "on_before_ui", "callback * name"),
    ((_CLASSIC,), "modules/script_callbacks.py", "on_before_ui", "callback"),
    ((*_BOTH, _REFORGE), "modules/script_callbacks.py", "on_script_unloaded", "callback * name"),
    ((_CLASSIC,), "modules/script_callbacks.py", "on_script_unloaded", "callback"),
    ((*_BOTH, _REFORGE), "modules/script_callbacks.py", "on_infotext_pasted", "callback * name"),
    ((_CLASSIC,), "modules/script_callbacks.py", "on_infotext_pasted", "callback"),
    (_BOTH, f"{_LORA}/networks.py", "process_network_files", "names"),
    (_BOTH, f"{_LORA}/networks.py", "list_available_networks", ""),
    (_BOTH, f"{_LORA}/network.py", "NetworkOnDisk.__init__", "self name filename"),
    (_BOTH, f"{_LORA}/ui_extra_networks_lora.py", "ExtraNetworksPageLora.allowed_directories_for_previews", "self"),
    (_BOTH, "backend/memory_management.py", "unload_all_models", ""),
    (_BOTH, "backend/patcher/base.py", "ModelPatcher.clone", "self"),
    (_BOTH, "backend/patcher/clip.py", "CLIP.clone", "self"),
    ((_NEO,), f"{_LORA}/networks.py", "load_networks", "names te_multipliers unet_multipliers"),
    ((_FORGE,), f"{_LORA}/networks.py", "load_networks", "names te_multipliers unet_multipliers dyn_dims"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.add_patches",
     "self patches strength_patch strength_model * filename online_mode"),
    ((_FORGE,), "backend/patcher/base.py", "ModelPatcher.add_patches",
     "self * filename patches strength_patch strength_model online_mode"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.unpatch_model", "self device_to unpatch_weights"),
    ((_FORGE,), "backend/patcher/lora.py", "LoraLoader.refresh", "self lora_patches offload_device force_refresh"),
    ((_NEO,), "modules_forge/packages/comfy/weight_adapter/base.py", "WeightAdapterBase.calculate_weight",
     "self weight key strength strength_model offset function intermediate_dtype original_weight"),
    (_OLDER, f"{_OLD_LORA}/networks.py", "load_networks", "names te_multipliers unet_multipliers dyn_dims"),
    (_OLDER, f"{_OLD_LORA}/networks.py", "list_available_networks", ""),
    ((_REFORGE,), f"{_OLD_LORA}/networks.py", "process_network_files", "names"),
    (_OLDER, f"{_OLD_LORA}/network.py", "NetworkOnDisk.__init__", "self name filename"),
    (_OLDER, "ldm_patched/modules/model_patcher.py", "ModelPatcher.clone", "self"),
    (_OLDER, "ldm_patched/modules/model_patcher.py", "ModelPatcher.is_clone", "self other"),
    (_OLDER, "ldm_patched/modules/model_patcher.py", "ModelPatcher.add_patches",
     "self patches strength_patch strength_model"),
    (_OLDER, "ldm_patched/modules/sd.py", "CLIP.add_patches", "self patches strength_patch strength_model"),
    (_OLDER, "modules_forge/unet_patcher.py", "UnetPatcher.clone", "self"),
    ((_REFORGE,), "ldm_patched/modules/model_management.py", "LoadedModel.model_unload",
     "self memory_to_free unpatch_weights"),
    ((_CLASSIC,), "ldm_patched/modules/model_management.py", "LoadedModel.model_unload", "self avoid_model_moving"),
    ((_REFORGE,), "ldm_patched/modules/weight_adapter/base.py", "WeightAdapterBase.calculate_weight",
     "self weight key strength strength_model offset function intermediate_dtype original_weight"),
    # Training.
    (_OLDER, "modules/sd_models.py", "reload_model_weights", "sd_model info forced_reload"),
    (_OLDER, "modules/sd_samplers_common.py", "images_tensor_to_samples", "image approximation model"),
    (_OLDER, "modules/sd_samplers_common.py", "samples_to_images_tensor", "sample approximation model"),
    (_OLDER, "modules/prompt_parser.py", "SdConditioning.__init__",
     "self prompts is_negative_prompt width height copy_from"),
    (_OLDER, "modules/shared_state.py", "State.begin", "self job"),
    (_OLDER, "modules/shared_state.py", "State.end", "self"),
    (_OLDER, "modules/sd_models_xl.py", "get_learned_conditioning", "self batch"),
    (_OLDER, "ldm_patched/modules/model_base.py", "BaseModel.get_dtype", "self"),
    ((_REFORGE,), f"{_ATTENTION}.py", "attention_pytorch",
     "q k v heads mask attn_precision skip_reshape skip_output_reshape"),
    ((_CLASSIC,), f"{_ATTENTION}.py", "attention_pytorch", "q k v heads mask"),
    (_OLDER, f"{_UNET}.py", "UNetModel.forward", "self x timesteps context y control transformer_options"),
]  # fmt: skip
# Of which hosts, file, function or method, a piece of code that must be in it.
CODE = [
    # Networks are activated through the module, for every batch and pass, and what draws is taken from there.
    (_ALL, "modules/processing.py", "process_images_inner", "extra_networks.activate(p, p.extra_network_data)"),
    (_ALL, "modules/processing.py", "process_images_inner",
     "p.sd_model.forge_objects = p.sd_model.forge_objects_after_applying_lora.shallow_copy()"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessingTxt2Img.sample_hr_pass",
     "extra_networks.activate(self, self.hr_extra_network_data)"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessingTxt2Img.sample_hr_pass",
     "self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessingTxt2Img.setup_conds",
     "extra_networks.activate(self, self.extra_network_data)"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessing.cached_params", "extra_network_data"),
    (_ALL, "modules/processing.py", "StableDiffusionProcessing.get_conds_with_caching", "cache[0] = cached_params"),
    # Whoever fails is called again without tags.
    (_ALL, "modules/extra_networks.py", "activate", "extra_network.activate(p, [])"),
    # The extension for LoRAs begins with the unpatched models whenever its own tags are others, and only then.
    (_BOTH, f"{_LORA}/networks.py", "load_networks", "current_sd.current_lora_hash == compiled_lora_targets_hash"),
    (_BOTH, f"{_LORA}/networks.py", "load_networks",
     "current_sd.forge_objects.unet = current_sd.forge_objects_original.unet"),
    (_BOTH, f"{_LORA}/networks.py", "load_networks",
     "current_sd.forge_objects_after_applying_lora = current_sd.forge_objects.shallow_copy()"),
    ((_NEO,), f"{_LORA}/extra_networks_lora.py", "ExtraNetworkLora.activate",
     "networks.load_networks(names, te_multipliers, unet_multipliers)"),
    ((_FORGE,), f"{_LORA}/extra_networks_lora.py", "ExtraNetworkLora.activate",
     "networks.load_networks(names, te_multipliers, unet_multipliers, dyn_dims)"),
    # Neo: adapters are told by their class and given a copy; where the weight was is kept before.
    ((_NEO,), "backend/patcher/lora.py", "merge_lora_to_weight", "isinstance(v, weight_adapter.WeightAdapterBase)"),
    ((_NEO,), "backend/patcher/lora.py", "merge_lora_to_weight",
     "v.calculate_weight(weight, key, strength, strength_model, offset, function, computation_dtype)"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.patch_weight_to_device", "self.backup[key]"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.patch_weight_to_device",
     "memory_management.lora_compute_dtype(device_to)"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.patch_weight_to_device",
     "stochastic_rounding(out_weight, weight.dtype, seed=string_to_seed(key))"),
    ((_NEO,), "backend/float.py", "stochastic_rounding", "return value.to(dtype=torch.bfloat16)"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.clone", "n.backup = self.backup"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.partially_load",
     "self.model.current_weight_patches_uuid != self.patches_uuid"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.unpatch_model", "self.backup.clear()"),
    # Forge: a function for each kind of patch is given a copy in fp32; what is merged is told by names alone.
    ((_FORGE,), "backend/patcher/lora.py", "merge_lora_to_weight",
     "extra_weight_calculators[patch_type](weight, strength, v)"),
    ((_FORGE,), "backend/patcher/lora.py", "LoraLoader.refresh",
     "merge_lora_to_weight(current_patches, weight, key, computation_dtype=torch.float32)"),
    ((_FORGE,), "backend/patcher/lora.py", "LoraLoader.refresh", "hashes = str(list(lora_patches.keys()))"),
    ((_FORGE,), "backend/patcher/lora.py", "LoraLoader.refresh", "self.backup[key] = weight.to(device=offload_device)"),
    ((_FORGE,), "backend/patcher/base.py", "ModelPatcher.add_patches",
     "lora_identifier = (filename, strength_patch, strength_model, online_mode)"),
    ((_FORGE,), "backend/patcher/base.py", "ModelPatcher.add_patches",
     "current_patches.append([strength_patch, patches[k], strength_model, offset, function])"),
    ((_FORGE,), "backend/patcher/base.py", "ModelPatcher.add_patches", "self.model.named_parameters()"),
    ((_NEO,), "backend/patcher/base.py", "ModelPatcher.add_patches", "self.model.state_dict()"),
    ((_FORGE,), "backend/patcher/base.py", "ModelPatcher.clone", "n.lora_patches = self.lora_patches.copy()"),
    # The first Forge's: the extension for LoRAs begins anew as in the others, and calls by module.
    (_OLDER, f"{_OLD_LORA}/networks.py", "load_networks", "current_sd.current_lora_hash == compiled_lora_targets_hash"),
    (_OLDER, f"{_OLD_LORA}/networks.py", "load_networks",
     "current_sd.forge_objects_after_applying_lora = current_sd.forge_objects.shallow_copy()"),
    (_OLDER, f"{_OLD_LORA}/extra_networks_lora.py", "ExtraNetworkLora.activate",
     "networks.load_networks(names, te_multipliers, unet_multipliers, dyn_dims)"),
    (_OLDER, "modules/sd_hijack.py", "EmbeddingsWithFixes.forward", "self.wrapped(input_ids)"),
    ((_CLASSIC,), "modules_forge/forge_clip.py", "CLIP_SD_15_L.encode_with_transformers", "move_clip_to_gpu()"),
    # reForge: an adapter is given a copy in fp32; copies are shared by clones; it is loaded anew for other patches.
    ((_REFORGE,), "ldm_patched/modules/lora.py", "calculate_weight",
     "v.calculate_weight(weight, key, strength, strength_model, offset, function, intermediate_dtype"),
    ((_REFORGE,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.patch_weight_to_device",
     "weight.to(torch.float32, copy=True)"),
    ((_REFORGE,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.patch_weight_to_device",
     "['weight', 'inplace_update']"),
    ((_REFORGE,), "ldm_patched/float.py", "stochastic_rounding", "return value.to(dtype=torch.bfloat16)"),
    ((_REFORGE,), "modules_forge/unet_patcher.py", "UnetPatcher.clone", "n.backup = self.backup"),
    ((_REFORGE,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.partially_load",
     "self.model.current_weight_patches_uuid != self.patches_uuid"),
    # classic: a function for each kind of patch, given a copy in fp32; each patcher keeps its own copies while loaded.
    ((_CLASSIC,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.calculate_weight",
     "extra_weight_calculators[patch_type](weight, alpha, v)"),
    ((_CLASSIC,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.patch_model",
     "weight.to(torch.float32, copy=True)"),
    ((_CLASSIC,), "ldm_patched/modules/model_patcher.py", "ModelPatcher.add_patches", "k in self.model_keys"),
    ((_CLASSIC,), "modules_forge/unet_patcher.py", "UnetPatcher.clone", "n.model_keys = self.model_keys"),
    ((_CLASSIC,), "ldm_patched/modules/model_management.py", "load_models_gpu",
     "unload_model_clones(loaded_model.model)"),
    # Training: attention by its name in each forward, weights cast where they compute, layers of its own classes.
    (_OLDER, f"{_ATTENTION}.py", "CrossAttention.forward", "optimized_attention(q, k, v, self.heads"),
    (_OLDER, f"{_ATTENTION}.py", "CrossAttention.forward", "optimized_attention_masked(q, k, v, self.heads, mask"),
    ((_CLASSIC,), f"{_ATTENTION}.py", "BasicTransformerBlock._forward", "x += n"),
    (_OLDER, f"{_UTIL}.py", "checkpoint", "if flag:"),
    (_OLDER, f"{_UNET}.py", "ResBlock.forward", "self.use_checkpoint"),
    ((_CLASSIC,), "ldm_patched/modules/model_detection.py", "detect_unet_config", "'use_checkpoint': False"),
    (_OLDER, "ldm_patched/modules/ops.py", "disable_weight_init", "class Linear(torch.nn.Linear"),
    ((_REFORGE,), "ldm_patched/modules/model_base.py", "BaseModel._apply_model", "dtype = self.manual_cast_dtype"),
    ((_CLASSIC,), "ldm_patched/modules/model_base.py", "BaseModel.apply_model", "dtype = self.manual_cast_dtype"),
    ((_REFORGE,), "ldm_patched/modules/model_base.py", "BaseModel._apply_model",
     "self.model_sampling.timestep(t).float()"),
    ((_CLASSIC,), "ldm_patched/modules/model_base.py", "BaseModel.apply_model",
     "self.model_sampling.timestep(t).float()"),
    # What a model predicts is mixed into its noise levels, anew for a checkpoint with its own word for it.
    (_OLDER, "ldm_patched/modules/model_base.py", "model_sampling", "class ModelSampling(s, c):"),
    (_OLDER, "modules_forge/forge_loader.py", "load_model_for_a1111",
     "sd_model.forge_objects.unet.model.model_sampling = model_sampling("),
    (_OLDER, "ldm_patched/modules/model_sampling.py", "ModelSamplingDiscrete.set_sigmas",
     "self.register_buffer('sigmas'"),
    (_OLDER, "modules_forge/forge_loader.py", "load_model_for_a1111",
     "sample = sd_model.forge_objects.vae.decode(sample).movedim(-1, 1) * 2.0 - 1.0"),
    (_OLDER, "modules_forge/forge_loader.py", "load_model_for_a1111", "sd_model.is_sd1 = "),
    (_OLDER, "modules_forge/forge_loader.py", "load_model_for_a1111", "sd_model.is_sdxl = "),
    ((_REFORGE,), "modules_forge/unet_patcher.py", "UnetPatcher.compile_model", "torch.compile("),
    (_OLDER, "modules/processing.py", "process_images_inner", "torch.inference_mode()"),
]  # fmt: skip


def _of_each(rows):
    return [pytest.param(host, *row, id=f"{host}-{row[1]}-{number}")
            for number, (hosts, *row) in enumerate(rows) for host in hosts]  # fmt: skip


def _found(host, file, name):
    checkout = os.environ.get(host)
    if checkout is None:
        pytest.skip(f"{host} (a checkout) is not set")
    found = function(checkout, file, name)
    assert found is not None
    return found


@pytest.mark.parametrize(("host", "file", "name", "parameters"), _of_each(SIGNATURES))
def test_a_function_has_the_parameters_that_we_give_it(host, file, name, parameters):
    assert parameter_names(_found(host, file, name)) == parameters.split()


@pytest.mark.parametrize(("host", "file", "name", "code"), _of_each(CODE))
def test_the_host_does_what_we_rely_on(host, file, name, code):
    assert code in ast.unparse(_found(host, file, name))
