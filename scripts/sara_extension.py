"""What the WebUIs run of this extension; everything is in the package sara_webui, which is imported here, while the
host has the extension's folder on its path."""

from modules import script_callbacks

from sara_webui import hosts
from sara_webui.api.a1111 import on_app_started
from sara_webui.tab.page import on_ui_tabs

host = hosts.current()

if host is not None:
    script_callbacks.on_before_ui(host.install_networks)
    script_callbacks.on_script_unloaded(host.uninstall)
    script_callbacks.on_app_started(on_app_started)
    script_callbacks.on_ui_tabs(on_ui_tabs)
    script_callbacks.on_infotext_pasted(host.paste)
