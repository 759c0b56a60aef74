"""Help pages are where ComfyUI's page asks for them first, in any language, and nothing else is."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HELP, LOCALES = ROOT / "js" / "docs", ROOT / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir())
NODES = sorted(path.stem for path in HELP.glob("*.md"))


@pytest.fixture
def page(server):
    """The text of a help page; an int for a status that is not 200."""

    def page(name):
        address = f"{server.client.address}/extensions/comfyui-sara/docs/{name}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert answer.headers.get_content_type() == "text/markdown"
                return answer.read().decode("utf-8")
        except urllib.error.HTTPError as error:
            return error.code

    return page


@pytest.mark.parametrize("language", ["en", "ru", "zh-TW", "xx"])
def test_the_english_page_is_there_for_every_language_without_words(page, language):
    for node in NODES:
        assert page(f"{node}/{language}.md") == (HELP / f"{node}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_has_every_input_and_output_in_its_language_and_loses_no_section(page, language):
    words = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node in NODES:
        text, english = page(f"{node}/{language}.md"), (HELP / f"{node}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {words[node]['display_name']}\n")
        assert len(re.findall(r"^##+ ", text, re.M)) == len(re.findall(r"^##+ ", english, re.M))
        explained = {name for item in re.findall(r"^- (.*?)[:：]", text, re.M) for name in re.findall(r"`(\w+)`", item)}
        shown = {name for name, entry in words[node]["inputs"].items() if entry.get("tooltip")}
        plain = {name for name, entry in words[node]["inputs"].items() if entry["name"] == name}
        assert shown - plain <= explained, node
        if not (HELP / node / f"{language}.md").is_file():
            for entry in [*words[node]["inputs"].values(), *words[node]["outputs"].values()]:
                assert entry.get("tooltip", "") in text
            assert "## Inputs" not in text and english.split("\n\n")[1] in text


@pytest.mark.parametrize(
    "name", ["SaRANone/en.md", "SaRATrain/..%2f..%2freport.md", "..%2f..%2flocales/zh.md", "SaRATrain/en.txt"]
)
def test_nothing_else_is_there(page, name):
    assert page(name) == 404
