"""Whether a WebUI of AUTOMATIC1111's kin offers an HTTP interface, and to whom."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modules import shared

from .routes import add_routes


def on_app_started(demo: Any, app: Any) -> None:
    """For script_callbacks.on_app_started. demo: the page, None where there is none; app: the WebUI's application"""
    options = shared.cmd_opts
    if getattr(options, "api", False) or getattr(options, "nowebui", False):
        add_routes(app, _credentials(options))


def _credentials(options: Any) -> dict[str, str]:
    """Of the host's own HTTP interface: --api-auth; in SD.Next --auth and --auth-file, which are for the page, too."""
    known = _pairs((getattr(options, "api_auth", None) or "").split(","))
    if hasattr(options, "auth_file"):
        texts = (getattr(options, "auth", None) or "").split(",")
        if options.auth_file:
            texts += Path(options.auth_file).read_text(encoding="utf-8").splitlines()
        known |= _pairs(text.replace('"', "") for text in texts)
        known = {user.strip(): password.strip() for user, password in known.items()}
    return known


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    """Of texts like "user:password"."""
    return dict(text.split(":", 1) for text in texts if ":" in text)
