"""Where WebUIs of AUTOMATIC1111's kin have their files."""

from collections.abc import Mapping
from pathlib import Path

from modules import sd_models, shared

from ..hosts import Host


class A1111Files:
    """See tools.Files."""

    def __init__(self, host: Host):
        self.host = host

    def networks(self) -> list[Path]:
        return self.host.folders()

    def deltas(self) -> Mapping[str, Path]:
        return self.host.shelf.deltas()

    def checkpoints(self) -> Mapping[str, Path]:
        listed = {info.name: Path(info.filename) for info in sd_models.checkpoints_list.values()}
        return {name: path for name, path in listed.items() if not path.is_dir()}  # SD.Next's may be diffusers folders

    def checkpoint_folder(self) -> Path:
        return Path(shared.cmd_opts.ckpt_dir or sd_models.model_path)

    def refresh(self) -> None:
        sd_models.list_models()
        self.host.refresh()


def chosen_checkpoint() -> Path | None:
    """The file of the checkpoint that is chosen in the page, loaded or not: some load it for the next picture. None
    where that cannot be told."""
    known = getattr(sd_models, "checkpoint_aliases", {})  # SD.Next has them elsewhere
    found = known.get(getattr(shared.opts, "sd_model_checkpoint", None))
    return None if found is None else Path(found.filename)


def may_use_paths() -> bool:
    """Whether whoever sits before the page may train on any folder: not where the page is shared, or hides folders."""
    options = shared.cmd_opts
    return not any(getattr(options, name, None) for name in ("share", "listen", "ngrok", "hide_ui_dir_config"))


def make_temporary_folder() -> None:
    """The host's folder for pictures that a page shows and nobody has saved: Forge's kin expect it, and make it only
    when it is set anew."""
    if folder := getattr(getattr(shared, "opts", None), "temp_dir", ""):
        Path(folder).mkdir(parents=True, exist_ok=True)
