"""Who may ask the HTTP interface for something: the WebUI's own users where it has any, else this machine alone.

Other pages in the same browser may send requests here, too: they are told by their origin, and by what a page cannot
send elsewhere without being asked first, JSON.
"""

import base64
import hmac
import ipaddress
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
_ELSEWHERE = ("cross-site", "same-site")


class Refusal(NamedTuple):
    """An HTTP status, and a sentence."""

    status: int
    sentence: str


def refusal(
    method: str, headers: Mapping[str, str], client: str | None, credentials: Mapping[str, str]
) -> Refusal | None:
    """Why a request is not answered; None if it is.

    headers: by their names in small letters; client: the address that it comes from, if that is known
    credentials: user → password of those who may ask; empty where the WebUI has none
    """
    if credentials:
        if not _is_user(headers.get("authorization", ""), credentials):
            return Refusal(401, "Give a name and password of those that the WebUI was started with.")
    elif not _is_local(client) or any(name in headers for name in _FORWARDED):
        return Refusal(
            403,
            "Only this machine may ask. For others start the WebUI with --api-auth USER:PASSWORD, SD.Next with --auth.",
        )
    elif _host_name(headers.get("host", "")) not in _LOCAL_NAMES:
        return Refusal(403, "Without names and passwords this is answered only under 127.0.0.1 and localhost.")
    origin = headers.get("origin")
    is_elsewhere = origin and urllib.parse.urlsplit(origin).netloc != headers.get("host")
    if is_elsewhere or headers.get("sec-fetch-site") in _ELSEWHERE:
        return Refusal(403, "Pages of other sites may not ask.")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Refusal(415, "Send JSON, as content-type application/json.")
    return None


def _is_user(authorization: str, credentials: Mapping[str, str]) -> bool:
    kind, _, encoded = authorization.partition(" ")
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # no base64, or no text in it
        return False
    known = credentials.get(user)
    # Compared even where there is no such user, so that the time says nothing of who there is.
    is_right = hmac.compare_digest(password.encode(), (known or "").encode())
    return kind.lower() == "basic" and known is not None and is_right


def _is_local(client: str | None) -> bool:
    try:
        address = ipaddress.ip_address(client or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _host_name(host: str) -> str | None:
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None
