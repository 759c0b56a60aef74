"""The tab as a whole, in a WebUI."""

from types import SimpleNamespace

from tests.webui.fakes.forge import forge_running
from tests.webui.fakes.forge_patchers import Classic
from tests.webui.tab import fake_gradio


def test_there_is_a_folder_for_the_pictures_that_it_shows(tmp_path, monkeypatch):
    """Else the host cannot show them."""
    with forge_running(tmp_path, Classic()) as webui:
        fake_gradio.install(monkeypatch)
        folder = tmp_path / "data" / "tmp"
        webui.shared.opts = SimpleNamespace(temp_dir=str(folder))
        webui.sd_models.checkpoints_list = {}
        monkeypatch.setattr("torch.__version__", "2.4.1")
        from sara_webui.tab.page import on_ui_tabs

        monkeypatch.setattr(fake_gradio.Part, "blocks", {}, raising=False)
        ((_, title, _),) = on_ui_tabs()
        assert title == "SaRA" and folder.is_dir()
        assert any("needs torch" in str(part.values) for part in fake_gradio.Part.made), "why nothing is trained"


def test_the_checkpoint_that_is_chosen_need_not_be_loaded(tmp_path):
    with forge_running(tmp_path, Classic()) as webui:
        webui.shared.opts = SimpleNamespace(sd_model_checkpoint="b.safetensors [0123456789]")
        from sara_webui.tab.a1111 import chosen_checkpoint

        assert chosen_checkpoint() is None
        chosen = SimpleNamespace(filename=str(tmp_path / "b.safetensors"))
        webui.sd_models.checkpoint_aliases = {"b.safetensors [0123456789]": chosen}
        assert chosen_checkpoint() == tmp_path / "b.safetensors"
