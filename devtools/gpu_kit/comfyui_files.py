"""Which files of a ComfyUI a kit takes: what the needed part of it reads, found by trying.

Only what is named is taken, so that a user's own models, pictures and packs stay where they are.
"""

from pathlib import Path

# Its own terms go with every copy.
LICENCE = "LICENSE"
SERVER_FOLDERS = (
    "alembic_db", "api_server", "app", "comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras",
    "middleware", "utils",
)  # fmt: skip
SERVER_SUFFIXES = (".py", ".pyi", ".json", ".yaml", ".toml", ".ini", ".txt", ".mako", ".model")
# Tokenizers of models that the checkpoint is not: read only when one of them is loaded, and half of all bytes.
TOKENIZERS = "comfy/text_encoders/"
LARGEST_TOKENIZER = 300_000


def library(comfyui: Path) -> list[str]:
    """What `import comfy.sd` and a checkpoint of SD1.5 need: the code, and the tokenizer of CLIP."""
    names = [_name(file, comfyui) for file in (comfyui / "comfy").rglob("*") if file.is_file()]
    return sorted([*filter(_is_of_library, names), "node_helpers.py", LICENCE])


def server(comfyui: Path) -> list[str]:
    """What main.py and the nodes of core need, without the page."""
    inside = [file for folder in SERVER_FOLDERS for file in (comfyui / folder).rglob("*")]
    found = [file for file in [*comfyui.iterdir(), *inside] if file.is_file() and file.suffix in SERVER_SUFFIXES]
    return sorted([*(_name(file, comfyui) for file in found if not _is_left_out(file, comfyui)), LICENCE])


def _is_of_library(name: str) -> bool:
    is_configuration = "config" in name and name.endswith(".json")
    return name.endswith(".py") or is_configuration or name.startswith("comfy/sd1_tokenizer/")


def _is_left_out(file: Path, comfyui: Path) -> bool:
    is_tokenizer = _name(file, comfyui).startswith(TOKENIZERS) and file.suffix != ".py"
    return is_tokenizer and file.stat().st_size > LARGEST_TOKENIZER


def _name(file: Path, comfyui: Path) -> str:
    return file.relative_to(comfyui).as_posix()
