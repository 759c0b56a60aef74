"""What our part of the page says is there in every language that it speaks, with every value that is put into it."""

import json
import re
from pathlib import Path

import pytest

from tests.support.page_words import (
    sentences_of_module,
    sentences_of_script,
    sentences_of_scripts,
    sentences_of_server,
    sentences_without_key,
)

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "js" / "common" / "languages").glob("*.json"), key=lambda path: path.stem)
LANGUAGES = [path.stem for path in TABLES]


def read_text(path):
    return path.read_text(encoding="utf-8")


def read(path):
    return json.loads(read_text(path))


def placeholders(sentence):
    return sorted(set(re.findall(r"\{(\w+)\}", sentence)))


@pytest.fixture(scope="module")
def said():
    of_server = sentences_of_server(ROOT / "nodes") | sentences_of_server(ROOT / "sara_core")
    return sentences_of_scripts(ROOT / "js") | of_server


@pytest.mark.parametrize("table", TABLES, ids=LANGUAGES)
def test_every_sentence_is_there_and_none_is_left_from_before(table, said):
    translated = read(table)["sentences"]
    assert said - set(translated) == set()
    assert set(translated) - said == set()


@pytest.mark.parametrize("table", TABLES, ids=LANGUAGES)
def test_no_value_that_is_put_into_a_sentence_is_lost(table):
    for english, translated in read(table)["sentences"].items():
        assert translated.strip() and placeholders(translated) == placeholders(english), english


@pytest.mark.parametrize("page", sorted((ROOT / "js" / "docs").glob("*/*.md")), ids=lambda page: page.parent.name)
def test_a_translated_help_page_says_all_that_the_english_one_says(page):
    english = read_text(ROOT / "js" / "docs" / f"{page.parent.name}.md")
    for kind in (r"^##+ ", r"^ *- ", r"^\d\. ", r"^\|", r"^```"):
        assert len(re.findall(kind, read_text(page), re.M)) == len(re.findall(kind, english, re.M)), kind


def test_chinese_has_every_help_page():
    pages = {path.stem for path in (ROOT / "js" / "docs").glob("*.md")}
    assert {path.parent.name for path in (ROOT / "js" / "docs").glob("*/zh.md")} == pages


def test_what_can_be_said_in_other_languages_is_a_sentence_as_it_is_written():
    files = [file for folder in ("nodes", "sara_core") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert [(file.name, found) for file in files for found in sentences_without_key(file.read_text("utf-8"))] == []
    module = "def f(x):\n    Sentence(f'{x} here')\n    Sentence('all {x}', x=x)"
    assert sentences_without_key(module) == ["f'{x} here'"]


def test_all_languages_have_words_for_the_same_choices_and_the_same_files():
    assert {tuple(read(table)["values"]) for table in TABLES} == {tuple(read(TABLES[0])["values"])}
    scripts = (ROOT / "js" / "common" / "words.js").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^const TRANSLATED = (\[.*?\]);", scripts, re.MULTILINE)
    assert json.loads(listed) == LANGUAGES
    assert sorted(path.name for path in (ROOT / "locales").iterdir()) == LANGUAGES
    for language in LANGUAGES:
        files = sorted(path.name for path in (ROOT / "locales" / language).iterdir())
        assert files == ["commands.json", "help.json", "main.json", "nodeDefs.json"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_word_of_a_node_has_what_old_pages_take_for_their_own_signs(language):
    """A | is an "or" to them, of which they show one half; @ and braces are links and values."""
    text = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    strings = re.findall(r': "([^"]*)"', text)
    assert len(strings) > 300 and not [found for found in strings if re.search(r"[|@{}]", found)]


def test_sentences_are_found_wherever_they_are_said():
    script = """const PHASES = {
  one: "First \\"of\\" {count}", two: "Second",
};
const [A, B] = ["no", "neither"];
say("Hello {name}", { name: "World" }); say(PHASES[x] ?? "Else"); element(say(
  "Long (really)",
)); say(ready.includes("x") && WORKING.includes(x) ? PHASES.one : key, values); saying("not this"); esay("nor this");
"""
    assert set(sentences_of_script(script)) == {
        "Hello {name}", 'First "of" {count}', "Second", "Else", "Long (really)",
    }  # fmt: skip
    module = """
def f(live, said, key):
    key = {"a": "One", "b": "Two"}[said]
    if said:
        key = "Three"
    live.doing("Four {x}", x="no")
    news.is_doing("phase", "Five" if said else "Six")
    sentence(key, a="no")
    sentence(said or "Seven")
EIGHT = Sentence("Eight")
amount(said, "Nine", "{count} tens")
"""
    assert set(sentences_of_module(module)) == {
        "One", "Two", "Three", "Four {x}", "Five", "Six", "Seven", "Eight", "Nine", "{count} tens",
    }
