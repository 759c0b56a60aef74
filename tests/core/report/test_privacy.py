"""Names of user, computer and home folder do not get through, however they are written; everything else does."""

import json
import unicodedata

import pytest

from sara_core.report.privacy import Privacy, of_this_machine

JOHN = Privacy(["C:\\Users\\John Doe"], ["John Doe"], ["JOHNS-PC", "ACME"])


@pytest.mark.parametrize("text, expected", [
    ("C:\\Users\\John Doe\\models\\a b.safetensors", "~\\models\\a b.safetensors"),
    ("c:\\USERS\\john doe\\Models", "~\\Models"),
    ("C:/Users/John Doe/models", "~/models"),
    (json.dumps("C:\\Users\\John Doe\\models"), '"~\\\\models"'),
    ("file:///C:/Users/John%20Doe/a.png", "file:///~/a.png"),
    ("\\\\?\\C:\\Users\\John Doe\\a", "\\\\?\\~\\a"),
    ("'C:\\Users\\John Doe' is no folder", "'~' is no folder"),
    ("C:\\Users\\JOHNDO~1\\AppData", "C:\\Users\\<user>\\AppData"),
    ("C:\\Users\\Jane Roe\\AppData", "C:\\Users\\<user>\\AppData"),
    ("/c/Users/Jane Roe/x", "/c/Users/<user>/x"),
    ("C:\\Documents and Settings\\Jane\\x", "C:\\Documents and Settings\\<user>\\x"),
    ("\\\\NAS-of-Jane\\pictures\\dog.png", "\\\\<computer>\\pictures\\dog.png"),
    ("\\\\nas\\Users\\Jane Roe\\dog.png", "\\\\<computer>\\Users\\<user>\\dog.png"),
    ("\\\\?\\UNC\\nas\\share\\x", "\\\\?\\UNC\\<computer>\\share\\x"),
    (json.dumps("\\\\nas\\share\\x"), '"\\\\\\\\<computer>\\\\share\\\\x"'),
    ("//nas/share/x", "//<computer>/share/x"),
    ("smb://jane@nas/share/x", "smb://<computer>/share/x"),
    ("https://jane:secret@example.org/x", "https://<user>@example.org/x"),
    ("trained by john doe on johns-pc.", "trained by <user> on <computer>."),
    ("a_style_of_John Doe_v2", "a_style_of_<user>_v2"),
    ("ACME\\John Doe", "<computer>\\<user>"),
])  # fmt: skip
def test_of_windows(text, expected):
    assert JOHN(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("/home/bob/models/x", "~/models/x"),
    ("/home/bob", "~"),
    ("base=/home/bob,x", "base=~,x"),
    ("/home/alice/x: no such file", "/home/<user>/x: no such file"),
    ("/mnt/home/alice/x", "/mnt/home/<user>/x"),
    ("/media/alice/disk", "/media/<user>/disk"),
    ("/Users/alice/x", "/Users/<user>/x"),
    ("/home/bobby/x", "/home/<user>/x"),
    ("bob@workstation:~$", "<user>@<computer>:~$"),
    ("Workstation.example", "<computer>.example"),
])  # fmt: skip
def test_of_linux_and_macs(text, expected):
    assert Privacy(["/home/bob"], ["bob"], ["workstation"])(text) == expected


@pytest.mark.parametrize("text", [
    "bobbin, Bobsled and kebob", "https://example.org/home", "torch 2.14.1, // and \\ and \\\\", "down_blocks.0.attn",
    "1/2 of a//b", "D:\\models\\sara\\a.safetensors",
])  # fmt: skip
def test_what_is_nobodys_stays(text):
    assert Privacy(["/home/bob"], ["bob"], ["workstation"])(text) == text


def test_either_form_of_accents_is_found():
    name = unicodedata.normalize("NFC", "Jürgen")
    hide = Privacy([f"/srv/{name}"], [name])
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "/srv/jürgen/x by JÜRGEN")
        assert hide(text) == "~/x by <user>"


def test_a_name_without_spaces_around_it_is_found_where_a_language_has_none():
    assert Privacy(users=["王伟"])("王伟的模型") == "<user>的模型"


@pytest.mark.parametrize("name", ["root", "Sara", "al"])
def test_a_name_that_anybodys_could_be_is_found_in_paths_only(name):
    hide = Privacy([f"/data/{name}"], [name])
    text = f"/data/{name}/x: sara_core of root, al dente, SaRA"
    assert hide(text) == "~/x: sara_core of root, al dente, SaRA"


@pytest.mark.parametrize("home", ["/", "", "C:\\"])
def test_a_home_that_is_everything_hides_nothing_else(home):
    assert Privacy([home])("/srv/models and C:\\models") == "/srv/models and C:\\models"


def test_the_names_are_those_of_this_machine(monkeypatch):
    for name, value in {"HOME": "/srv/jane", "USERPROFILE": "/srv/jane", "LOGNAME": "janeroe", "USERNAME": "janeroe",
                        "USERDOMAIN": "roe-family"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("platform.node", lambda: "janes-box.example")
    text = "/srv/jane/x janeroe jane janes-box janes-box.example ROE-FAMILY"
    assert of_this_machine()(text) == "~/x <user> <user> <computer> <computer> <computer>"


def test_of_the_environment_nothing_else_is_read(monkeypatch):
    import os

    class Watched(dict):
        asked = set()

        def __getitem__(self, name):
            self.asked.add(name)
            return super().__getitem__(name)

        def get(self, name, default=None):
            self.asked.add(name)
            return super().get(name, default)

        def __iter__(self):
            raise AssertionError("all of it is read")

        items = values = keys = __iter__

    monkeypatch.setattr(os, "environ", Watched(os.environ))
    of_this_machine()
    names = {"HOME", "USERPROFILE", "HOMEPATH", "HOMEDRIVE", "LOGNAME", "USER", "LNAME", "USERNAME", "COMPUTERNAME",
             "USERDOMAIN"}  # fmt: skip
    assert Watched.asked and Watched.asked <= names
