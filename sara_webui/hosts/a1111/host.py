"""AUTOMATIC1111's WebUI as the face knows it."""

from pathlib import Path
from typing import Any

from modules import extra_networks, paths, processing, sd_models, shared


class A1111:
    """See hosts/host.py."""

    name = "AUTOMATIC1111"

    def install_networks(self) -> None:
        pass

    def uninstall(self) -> None:
        pass

    def folders(self) -> list[Path]:
        return [Path(paths.models_path, "sara"), Path(shared.cmd_opts.lora_dir)]

    def model(self) -> Any:
        return sd_models.model_data.sd_model

    def take_off_everything(self) -> None:
        extra_networks.activate(processing.StableDiffusionProcessingTxt2Img(), {})

    def refresh(self) -> None:
        pass
