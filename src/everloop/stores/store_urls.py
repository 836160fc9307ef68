"""URLs of stores: checking them, and hiding their secrets in messages.

Messages, records and logs show a URL as `mask_url(url)`, and a library's error about a URL as `mask_text(text, url)`.
Both accept any text and never fail, because a malformed URL usually contains a password that was not encoded.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

HIDDEN = "***"
MOST_SHOWN = 300
SHORT = 4
"""Values of at most this many characters, such as `true`, are not treated as secrets."""

_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "wasb", "wasbs", "r2")
_AZURE = ("abfs", "abfss", "wasb", "wasbs")
_PLAIN = ("http", "https", "file", "memory", *_BUCKETS)
"""Schemes whose paths may contain an `@`. All other URLs are treated as databases, with a user before the `@`."""
BUCKETS = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "memory", "file")
"""Schemes that are supported for objects and tables."""
_SHOWN_OPTIONS = frozenset(
    (
        *("application_name", "connect_timeout", "dbname", "host", "hostaddr", "keepalives", "mode", "port"),
        *("region", "sslmode", "target_session_attrs", "user"),
    )
)
_SECRET_OPTION = re.compile(
    r"pass|pwd|secret|token|sig|credential|key|auth|session|^code$|^sas$|^jwt$|^policy$", re.IGNORECASE
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]{0,39}")
"""Besides the standard's characters, an underscore, which occurs in names of drivers: `db2+ibm_db`."""
_ALMOST_URL = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:/|/*+[^/:]*+:.*@|(?i:postgres|postgresql|s3|gs|az|redis|mysql):")
_full: dict[str, str] = {}
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PORT = re.compile(r"[0-9]{1,5}")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NAMED = (
    r"(?:[A-Za-z0-9_-]{0,40}(?:password|passwd|passphrase|pwd|secret|token|signature|credential|api_?key|access_?key)"
    r"[A-Za-z0-9_-]{0,40}|sig|pass|accountkey|sharedaccesskey|sharedaccesssignature)"
)
_PAIR = re.compile(rf"(?i)\b({_NAMED})(\s{{0,3}}[=:]\s{{0,3}})('[^']*'|\"[^\"]*\"|[^\s,;&'\"]+)")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+._-]{0,39}://\S+")


def mask_url(url: str) -> str:
    """Return a URL, or what was meant as one, with possible secrets hidden.

    Before the `@`, only the user of a database is shown. After the `?`, values are shown only for options that are
    known to hold no secret.
    """
    text = "".join(sign if sign.isprintable() else "?" for sign in str(url))
    scheme, found, rest = text.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        return _short(_without_scheme(text))
    head, mark, options = _options(scheme, rest)
    user, at, address = _userinfo(scheme, head)
    if mark:
        mark += _shown_options(scheme, options) if mark == "?" else HIDDEN
    return _short(f"{scheme}://{user}{at}{address}{mark}")


def mask_text(text: str, *urls: str) -> str:
    """Return a library's message with possible secrets hidden.

    Args:
        urls: the URLs that the library was called with. Their secrets are hidden wherever they occur.
    """
    shown = str(text)
    for secret in sorted({secret for url in urls for secret in _secrets(url)}, key=len, reverse=True):
        if len(secret) >= 4:
            shown = shown.replace(secret, HIDDEN)
        else:
            # A short secret is replaced only as a whole word. Otherwise the gaps in other words would reveal it.
            shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, shown)
    shown = _IN_TEXT.sub(lambda match: mask_url(match[0]), shown)
    return _PAIR.sub(lambda match: f"{match[1]}{match[2]}{HIDDEN}", shown)


def check_url(url: str, what: str, schemes: tuple[str, ...]) -> None:
    """Raise UsageError if a URL is malformed, before a library can quote it in its own error.

    Args:
        what: the beginning of the message, such as "The URL of the records".
        schemes: the supported schemes.
    """
    reason, advice = _fault(url, schemes)
    if reason:
        raise UsageError(f"{what} '{mask_url(url)}' {reason}.", help=advice)


def has_scheme(url: str) -> bool:
    return "://" in url and _SCHEME.fullmatch(url.partition("://")[0]) is not None


def check_path(path: str, what: str) -> None:
    """Raise UsageError if a path looks like a URL. Used as a path, it could create a folder named after a password."""
    if any(sign < " " or sign == "\x7f" for sign in path):
        raise UsageError(
            f"{what} '{mask_url(path)}' contains a line break or a control character.", help="Use the path of a folder."
        )
    if "://" in path or _ALMOST_URL.match(path) or _PAIR.search(path):
        raise UsageError(
            f"{what} '{mask_url(path)}' is not a path.",
            help="A home is a folder. Put URLs of its parts into everloop.toml: [store] records, objects, tables.",
        )


def remembered(url: str) -> str:
    """Return `mask_url(url)` for use in a record. This process remembers the full URL for `recalled`."""
    shown = mask_url(url)
    if shown != url:
        _full[shown] = url
    return shown


def recalled(url: str) -> str:
    """Return the full URL if `remembered` has masked it in this process. Any other URL is returned unchanged."""
    return _full.get(url, url)


def database_name(url: str) -> str:
    """Return a database URL with only its host and name, for messages about the database."""
    scheme, _, rest = url.partition("://")
    head, _, options = _options(scheme, rest)
    address = _userinfo(scheme, head)[2]
    host = next((value for name, value in _pairs(options) if name == "host"), "")
    return mask_url(f"{scheme}://{address}" if address.strip("/") or not host else f"{scheme}://{host}{address}")


def _fault(url: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    encode = (
        "Encode special characters in the user and password: a space as %20, @ as %40, : as %3A, / as %2F, % as %25."
    )
    scheme, found, rest = url.partition("://")
    if any(sign <= " " or sign == "\x7f" for sign in url):
        return "contains a space, a line break or a control character", encode
    if not url.isascii():
        return "contains characters that are not ASCII", "Encode their UTF-8 bytes, such as %C3%A4 for ä."
    known = ", ".join(f"{name}://" for name in schemes)
    if not found or not _SCHEME.fullmatch(scheme):
        return "does not begin with a scheme", f"Supported: {known}"
    if scheme not in schemes:
        return f"has the scheme '{scheme}', which is not supported here", f"Supported: {known}"
    if _ESCAPE.search(url):
        return "has a % that is not followed by two hexadecimal digits", encode
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if scheme in _PLAIN:
        return _plain_fault(scheme, authority, rest)
    if authority.count("@") > 1:
        return "has more than one @ before its host", encode
    if "@" not in authority and "@" in rest:
        return "has an unencoded /, ? or # in its user or password", encode
    for host in authority.rpartition("@")[2].split(","):
        name, _, port = host.rpartition("]")[2].partition(":")
        if ":" in port or (port and not (_PORT.fullmatch(port) and 0 < int(port) < 65536)):
            return "has a port that is not a number from 1 to 65535, or an unencoded character before it", encode
        if re.search(r"[\\'\"<>^`{|}$!*()+;=]", name) or ("[" in host) != ("]" in host):
            return "has a host that is not a name or address", encode
    return "", ""


def _plain_fault(scheme: str, authority: str, rest: str) -> tuple[str, str]:
    if scheme in _BUCKETS and (":" in authority or ("@" in authority and scheme not in _AZURE)):
        return (
            "has more than a bucket's name before its path",
            "Set credentials and endpoints of object stores in the environment, such as AWS_ACCESS_KEY_ID.",
        )
    if "@" in authority and scheme not in _AZURE:
        return "contains a user or password", "Set credentials in the environment."
    if re.search(r"[?#]", rest):
        return "has options, which are not supported", "Set credentials and options in the environment."
    return "", ""


def _options(scheme: str, rest: str) -> tuple[str, str, str]:
    """Split a URL without its scheme into the part before the options, the `?` or `#`, and the options."""
    start = 0 if scheme.lower() in _PLAIN else rest.rfind("@") + 1
    found = re.search(r"[?#]", rest[start:])
    if found is None:
        return rest, "", ""
    at = start + found.start()
    return rest[:at], rest[at], rest[at + 1 :]


def _userinfo(scheme: str, head: str) -> tuple[str, str, str]:
    """Split the part before the options into the user as it may be shown, the `@`, and the rest."""
    scheme = scheme.lower()
    authority = head.partition("/")[0]
    port = authority.rpartition(":")[2] if ":" in authority else ""
    # A `/` in a password ends the part that looks like host and port. The port is then not a number.
    broken = scheme not in _PLAIN or "@" in authority or (bool(port) and not _PORT.fullmatch(port) and "]" not in port)
    end = head.rfind("@") if broken else authority.rfind("@")
    if end < 0:
        if broken and scheme not in _PLAIN:
            return "", "", _plain_host(head)
        return "", "", head
    user, colon, _ = head[:end].partition(":")
    if scheme in _PLAIN or not _USER.fullmatch(user):
        # Before the host of a web address or bucket there may be a token or the id of a key. Only Azure has the name of
        # a container there.
        container = scheme in _AZURE and not colon and _USER.fullmatch(user)
        return (user if container else HIDDEN), "@", head[end + 1 :]
    return user, "@", head[end + 1 :]


def _plain_host(head: str) -> str:
    """The host of a database URL without a user. What looks like its port may be a password if the @ is missing."""
    authority, slash, path = head.partition("/")
    host, colon, port = authority.partition(":")
    if colon and not _PORT.fullmatch(port) and not authority.startswith("[") and "," not in authority:
        return f"{host}:{HIDDEN}"
    return f"{authority}{slash}{path}"


def _without_scheme(text: str) -> str:
    end = text.rfind("@")
    if end > 0 and ":" in text[:end]:
        return f"{HIDDEN}{text[end:]}"
    return _PAIR.sub(lambda match: f"{match[1]}{match[2]}{HIDDEN}", text)


def _pairs(options: str) -> Iterator[tuple[str, str]]:
    for option in re.split(r"[&;]", options):
        name, _, value = option.partition("=")
        yield name, value


def _shown_options(scheme: str, options: str) -> str:
    shown = []
    for name, value in _pairs(options):
        if not value or not _USER.fullmatch(name):
            # Without a value, this may be the rest of a password with an unencoded `?`.
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={value if _is_shown(scheme, name, value) and '@' not in value else HIDDEN}")
    return "&".join(shown)


def _is_shown(scheme: str, option: str, value: str) -> bool:
    """Whether the value of an option may be shown.

    The options of a web address can have any name. Those of a database are known, so an unknown one may be a misspelled
    password, unless its value is too short.
    """
    if option.lower() in _SHOWN_OPTIONS:
        return True
    return not _SECRET_OPTION.search(option) and (scheme.lower() in _PLAIN or len(value) <= SHORT)


def _secrets(url: str) -> Iterator[str]:
    """The secrets in a URL, both encoded as in the URL and decoded."""
    scheme, found, rest = str(url).partition("://")
    if not found:
        scheme, rest = "", str(url)
    head, _, options = _options(scheme, rest)
    shown = _userinfo(scheme, head)
    if shown[1]:
        hidden = head[: len(head) - len(shown[2]) - 1]
        user, colon, password = hidden.partition(":")
        known = _USER.fullmatch(user) and scheme.lower() not in _PLAIN
        for secret in (password,) if colon and known else (hidden, password) if not known else ():
            yield from _spellings(secret)
    for name, value in _pairs(options):
        if not value or not _is_shown(scheme, name, value):
            yield from _spellings(value or name)


def _spellings(secret: str) -> Iterator[str]:
    for text in (secret, unquote(secret)):
        if text:
            yield text


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
