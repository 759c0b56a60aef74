"""The pack's ComfyUI nodes, and what it tells the host when it is loaded."""

from comfy_api.latest import ComfyExtension, io

from .bake import SaRABake
from .convert import SaRAConvert
from .dataset import SaRADataset
from .extract import SaRAExtract
from .host.folders import register_folders
from .host.loading.in_place import register_in_place
from .host.patching import register_adapter
from .host.report import register_report
from .host.web.check import register_check
from .host.web.datasets import register_datasets
from .host.web.deltas import register_deltas
from .host.web.help import register_help
from .host.web.runs import register_runs
from .inspect import SaRAInspect
from .load import SaRAApply, SaRALoader
from .merge import SaRAMerge
from .save import SaRASave
from .train import SaRATrain
from .train_options import SaRATrainOptions, SaRATrainSamples


class SaRAExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()
        register_adapter()
        register_in_place()
        register_report()
        register_runs()
        register_datasets()
        register_deltas()
        register_check()
        register_help()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SaRATrain, SaRATrainOptions, SaRATrainSamples, SaRASave, SaRALoader, SaRAApply, SaRABake, SaRAMerge,
            SaRAExtract, SaRAInspect, SaRAConvert, SaRADataset,
        ]  # fmt: skip


async def comfy_entrypoint() -> SaRAExtension:
    return SaRAExtension()
