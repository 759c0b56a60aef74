"""Who is answered: the WebUI's users where it has any, else this machine; no other site's page, nothing but JSON."""

import base64

import pytest

from sara_webui.api.guard import refusal

JSON = {"host": "127.0.0.1:7860", "content-type": "application/json"}
USERS = {"ann": "secret", "bob": "a:b"}


def basic(text):
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost", "[::1]:7860"])
def test_this_machine_is_answered(client, host):
    assert refusal("POST", {**JSON, "host": host}, client, {}) is None
    assert refusal("GET", {"host": host}, client, {}) is None
    same_origin = {**JSON, "host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert refusal("POST", same_origin, client, {}) is None


@pytest.mark.parametrize(
    "client, more",
    [
        ("192.168.0.7", {}),
        ("8.8.8.8", {}),
        ("::ffff:8.8.8.8", {}),
        (None, {}),
        ("testclient", {}),
        ("127.0.0.1", {"x-forwarded-for": "8.8.8.8"}),
        ("127.0.0.1", {"forwarded": "for=8.8.8.8"}),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:7860"}),
        ("127.0.0.1", {"host": "abc.gradio.live"}),
        ("127.0.0.1", {"host": ""}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_users_nobody_else_is(method, client, more):
    assert refusal(method, {**JSON, **more}, client, {}).status == 403


@pytest.mark.parametrize(
    "more, status",
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=application/json"}, 415),
        ({"content-type": ""}, 415),
    ],
)
@pytest.mark.parametrize("users", [{}, USERS])
def test_pages_of_other_sites_are_not_whoever_is_logged_in(more, status, users):
    assert refusal("POST", {**JSON, **basic("ann:secret"), **more}, "127.0.0.1", users).status == status


@pytest.mark.parametrize("given", ["ann:secret", "bob:a:b"])
def test_users_are_answered_from_everywhere(given):
    assert refusal("POST", {**JSON, **basic(given), "host": "studio.lan"}, "192.168.0.7", USERS) is None


@pytest.mark.parametrize(
    "given",
    [
        {}, basic("ann:wrong"), basic("ann"), basic("eve:"), basic(":"), basic("ann:"), {"authorization": "Basic §"},
        {"authorization": "Bearer YW5uOnNlY3JldA=="}, {"authorization": "Basic /w=="},
    ],
)  # fmt: skip
def test_where_there_are_users_nobody_else_is_answered_from_this_machine_either(given):
    assert refusal("GET", {**JSON, **given}, "127.0.0.1", USERS).status == 401
