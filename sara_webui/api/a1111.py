"""Whether a WebUI of AUTOMATIC1111's kin offers an HTTP interface, and to whom."""

from typing import Any

from modules import shared

from .routes import add_routes


def on_app_started(demo: Any, app: Any) -> None:
    """For script_callbacks.on_app_started. demo: the page, None where there is none; app: the WebUI's application"""
    options = shared.cmd_opts
    if getattr(options, "api", False) or getattr(options, "nowebui", False):
        add_routes(app, _credentials(getattr(options, "api_auth", None)))


def _credentials(text: str | None) -> dict[str, str]:
    """"user:password,other:word", as --api-auth has it."""
    return dict(one.split(":", 1) for one in (text or "").split(",") if ":" in one)
