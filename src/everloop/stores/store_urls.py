"""URLs of stores: which are well formed, and what of one may be shown.

Everything that names a URL in a message, a record or a log shows `mask_url(url)`, and everything that passes on the
words of a library that was given one shows `mask_text(words, url)`. Both take any text, however malformed, and never
fail: a password that was not encoded is the usual reason for a malformed URL.
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
"""So many characters, such as those of `true`, are not taken for a secret."""

_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "wasb", "wasbs", "r2")
_AZURE = ("abfs", "abfss", "wasb", "wasbs")
_PLAIN = ("http", "https", "file", "memory", *_BUCKETS)
"""Schemes whose paths may well hold an `@`. Everything else is taken for a database, with a user in front of one."""
BUCKETS = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "memory", "file")
"""Schemes of stores for objects and tables."""
_SHOWN_OPTIONS = frozenset(
    (
        *("application_name", "connect_timeout", "dbname", "host", "hostaddr", "keepalives", "mode", "port"),
        *("region", "sslmode", "target_session_attrs", "user"),
    )
)
_SECRET_OPTION = re.compile(
    r"pass|pwd|secret|token|sig|credential|key|auth|session|^code$|^sas$|^jwt$|^policy$", re.IGNORECASE
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}")
_ALMOST_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|/*+[^/:]*+:.*@|(?i:postgres|postgresql|s3|gs|az|redis|mysql):")
_full: dict[str, str] = {}
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PORT = re.compile(r"[0-9]{1,5}")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NAMED = (
    r"(?:[A-Za-z0-9_-]{0,40}(?:password|passwd|passphrase|pwd|secret|token|signature|credential|api_?key|access_?key)"
    r"[A-Za-z0-9_-]{0,40}|sig|pass|accountkey|sharedaccesskey|sharedaccesssignature)"
)
_PAIR = re.compile(rf"(?i)\b({_NAMED})(\s{{0,3}}[=:]\s{{0,3}})('[^']*'|\"[^\"]*\"|[^\s,;&'\"]+)")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}://\S+")


def mask_url(url: str) -> str:
    """A URL, or what was meant as one, without what may be secret in it.

    Of the part before `@` only a database's user stays, and of the options after `?` only those that are known to
    hold no secret keep their values.
    """
    text = "".join(sign if sign.isprintable() else "?" for sign in str(url))
    scheme, found, rest = text.partition("://")
    if not found or not _SCHEME.fullmatch(scheme):
        return _short(_without_scheme(text))
    head, mark, options = _options(scheme, rest)
    user, at, place = _userinfo(scheme, head)
    if mark:
        mark += _shown_options(scheme, options) if mark == "?" else HIDDEN
    return _short(f"{scheme}://{user}{at}{place}{mark}")


def mask_text(text: str, *urls: str) -> str:
    """What a library says, without what may be secret in it.

    Args:
        urls: those that the library was given; what is secret in them is hidden wherever it stands.
    """
    shown = str(text)
    for secret in sorted({secret for url in urls for secret in _secrets(url)}, key=len, reverse=True):
        if len(secret) >= 4:
            shown = shown.replace(secret, HIDDEN)
        else:
            # Replaced everywhere, a short one would be guessed by the gaps that it leaves.
            shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, shown)
    shown = _IN_TEXT.sub(lambda match: mask_url(match[0]), shown)
    return _PAIR.sub(lambda match: f"{match[1]}{match[2]}{HIDDEN}", shown)


def check_url(url: str, what: str, schemes: tuple[str, ...]) -> None:
    """Raise UsageError if a URL is malformed, before a library sees it and quotes it in an error of its own.

    Args:
        what: the URL is for, as a message begins: "The URL of the records".
        schemes: those that are supported.
    """
    reason, advice = _fault(url, schemes)
    if reason:
        raise UsageError(f"{what} '{mask_url(url)}' {reason}.", help=advice)


def has_scheme(url: str) -> bool:
    return "://" in url and _SCHEME.fullmatch(url.partition("://")[0]) is not None


def check_path(path: str, what: str) -> None:
    """Raise UsageError if what is to be a path looks like a URL: taken for a path, it would name a folder after a
    password."""
    if any(sign < " " or sign == "\x7f" for sign in path):
        raise UsageError(f"{what} '{mask_url(path)}' holds a line break or a control character.", help="Name a folder.")
    if "://" in path or _ALMOST_URL.match(path) or _PAIR.search(path):
        raise UsageError(
            f"{what} '{mask_url(path)}' is not a path.",
            help="A home is a folder. URLs for its parts go into everloop.toml: [store] records, objects, tables.",
        )


def remembered(url: str) -> str:
    """`mask_url(url)`, for a record. This process remembers what stands for it, see `recalled`."""
    shown = mask_url(url)
    if shown != url:
        _full[shown] = url
    return shown


def recalled(url: str) -> str:
    """The URL that `remembered` has masked in this process; any other as it is."""
    return _full.get(url, url)


def database_name(url: str) -> str:
    """A database's URL with host and name only, as messages about the database show it."""
    scheme, _, rest = url.partition("://")
    head, _, options = _options(scheme, rest)
    place = _userinfo(scheme, head)[2]
    host = next((value for name, value in _pairs(options) if name == "host"), "")
    return mask_url(f"{scheme}://{place}" if place.strip("/") or not host else f"{scheme}://{host}{place}")


def _fault(url: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    encode = "Encode special characters of user and password: a space as %20, @ as %40, : as %3A, / as %2F, % as %25."
    scheme, found, rest = url.partition("://")
    if any(sign <= " " or sign == "\x7f" for sign in url):
        return "holds a space, a line break or a control character", encode
    if not url.isascii():
        return "holds characters outside of ASCII", "Encode them by their UTF-8 bytes, such as %C3%A4 for ä."
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
    place = authority.rpartition("@")[2]
    for host in place.split(","):
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
            "Credentials and endpoints of object stores come from the environment, such as AWS_ACCESS_KEY_ID.",
        )
    if "@" in authority and scheme not in _AZURE:
        return "holds a user or password", "Give credentials in the environment."
    if re.search(r"[?#]", rest):
        return "has options, and takes none", "Give credentials and options in the environment."
    return "", ""


def _options(scheme: str, rest: str) -> tuple[str, str, str]:
    """What is in front of the options of a URL, the sign that begins them, and the options."""
    start = 0 if scheme.lower() in _PLAIN else rest.rfind("@") + 1
    found = re.search(r"[?#]", rest[start:])
    if found is None:
        return rest, "", ""
    at = start + found.start()
    return rest[:at], rest[at], rest[at + 1 :]


def _userinfo(scheme: str, head: str) -> tuple[str, str, str]:
    """What may be shown in front of the host, the sign behind it, and the rest."""
    scheme = scheme.lower()
    authority = head.partition("/")[0]
    port = authority.rpartition(":")[2] if ":" in authority else ""
    # A `/` in a password ends what looks like the host, and leaves something that is not a port behind it.
    broken = scheme not in _PLAIN or "@" in authority or (bool(port) and not _PORT.fullmatch(port) and "]" not in port)
    end = head.rfind("@") if broken else authority.rfind("@")
    if end < 0:
        if broken and scheme not in _PLAIN:
            return "", "", _plain_host(head)
        return "", "", head
    user, colon, _ = head[:end].partition(":")
    if scheme in _PLAIN or not _USER.fullmatch(user):
        # In front of the host of a web address or bucket there may be a token, or the number of a key. Azure alone
        # writes the name of a container there.
        container = scheme in _AZURE and not colon and _USER.fullmatch(user)
        return (user if container else HIDDEN), "@", head[end + 1 :]
    return user, "@", head[end + 1 :]


def _plain_host(head: str) -> str:
    """A database's host without a user. What stands where the port should be may be a password whose @ was lost."""
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
            # Without a value the name may be what follows an unencoded `?` of a password.
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={value if _is_shown(scheme, name, value) and '@' not in value else HIDDEN}")
    return "&".join(shown)


def _is_shown(scheme: str, option: str, value: str) -> bool:
    """Whether the value of an option may be shown. A web address has options of any name. A database's are known, and
    one of another name may be a misspelled password, unless it is too short to be one."""
    if option.lower() in _SHOWN_OPTIONS:
        return True
    return not _SECRET_OPTION.search(option) and (scheme.lower() in _PLAIN or len(value) <= SHORT)


def _secrets(url: str) -> Iterator[str]:
    """Texts that are secret in a URL, as they stand in it and decoded."""
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
