"""What is sent to an address of ours and is no question gets a sentence, whatever it says of itself."""

import json
import urllib.error
import urllib.request

import pytest

MIB = 1024 * 1024
JSON = "application/json"


def posted(server, content, content_type: str = JSON) -> tuple[int, dict]:
    """Status and JSON answer to a POST; content that comes in parts has no length in front."""
    address = f"{server.client.address}/sara/dataset/folder"
    request = urllib.request.Request(address, content, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe", b"[" * 100_000, b"[]", b"3", b"null"])
def test_what_is_no_question_is_refused(server, content):
    status, answer = posted(server, content)
    assert status == 400 and "JSON" in answer["error"]


def test_a_character_set_that_nobody_has_changes_nothing(server):
    status, answer = posted(server, b"{}", f"{JSON}; charset=nobodys")
    assert status == 400 and "Give the new folder a name" in answer["error"]


def test_a_question_that_does_not_say_how_long_it_is_is_measured(server):
    long = json.dumps({"name": "a" * MIB}).encode()
    parts = (long[start : start + 65536] for start in range(0, len(long), 65536))
    status, answer = posted(server, parts)
    assert status == 413 and answer["error"] == "That is too much at once."


def test_only_json_is_taken(server):
    assert posted(server, b"{}", "text/plain")[0] == 415
