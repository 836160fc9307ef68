"""Masking of secrets in the records of runs. Secrets are found by name and by shape, and masked before they are stored.

A secret is replaced by `***name***`, with the name of what was there: `--password hunter2` becomes `--password
***password***`. `everloop reproduce RUN --with password=…` supplies it again. Values that only refer to a secret
(`$TOKEN`, `{token}`, `<password>`) are not masked, and neither are values of names that only look similar:
`--max-tokens`, `pad_token`, `--passes`, `tokenizer`, `partition_key`. In source code only quoted strings are masked:
`token = read_token()` is code.

This finds only what looks like a secret. It cannot find a password that is passed as a plain word without a name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.stores.home import nearest_config
from everloop.tracking.secrets.secret_names import is_reference, is_secret_name, is_secret_value
from everloop.tracking.secrets.secret_patterns import replace_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from everloop.records import Json

_AWS_SECRET = re.compile(r"(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])")
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}?PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?!-----END ).)*+(?:-----END [A-Z0-9 ]{0,60}-----)?",
    re.DOTALL,
)
_BEARER = re.compile(r"(?<![A-Za-z0-9])bearer\s{1,4}+([A-Za-z0-9._~+/=-]{12,}+)", re.IGNORECASE)
_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}+)://([^\s\"'<>]*+)")
_PAIR = re.compile(
    r"""(?<![A-Za-z0-9_.\-])([A-Za-z_\-][A-Za-z0-9_.\-]{1,199}+)(\\{0,3}+["']?+\s{0,4}+(?:=>|:=|=|:)\s{0,4}+)"""
)
_QUOTE = re.compile(r"""[fFbBrRuU]{0,2}+(\\{0,3}+(?:\"\"\"|'''|["']))""")
_BARE = re.compile(r"""[^\s;&,"'<>|)}\]\[{(]*+""")
_REST = re.compile(r"""[^"'\r\n]*+""")
_WHOLE_PAIR = re.compile(r"([-+~/]{0,2}+[A-Za-z_][A-Za-z0-9_.\-]{0,199}+)(:?=)(.*)", re.DOTALL)
_SETTING_LINE = re.compile(
    r"^([ \t]{0,40}+(?:export[ \t]{1,4}+|-[ \t]{1,4}+)?([A-Za-z_][A-Za-z0-9_.\-]{0,199}+)[ \t]{0,9}+[:=][ \t]{0,9}+)"
    r"([^\s()\[\]{}\"',;]++)[ \t\r]{0,40}+$",
    re.MULTILINE,
)
"""A line of a YAML, INI or shell file with an unquoted value; a call or a list is code."""
_OPTION = re.compile(r"-{1,2}+[A-Za-z][A-Za-z0-9_.\-]{0,199}+")
_UNNAMED_USER = 20
"""A user name of at least this length, in a URL without a password, is taken for a token."""

_TOOLS: dict[str, tuple[str, ...]] = {
    "mysql": ("-p+",),
    "mysqldump": ("-p+",),
    "mysqladmin": ("-p+",),
    "mariadb": ("-p+",),
    "mariadb-dump": ("-p+",),
    "sshpass": ("-p",),
    "mongo": ("-p",),
    "mongosh": ("-p",),
    "mongodump": ("-p",),
    "mongorestore": ("-p",),
    "twine": ("-p",),
    "redis-cli": ("-a",),
    "curl": ("-u:", "--user:", "-U:", "--proxy-user:", "-b"),
    "wget": (),
    "http": ("-a:",),
    "https": ("-a:",),
    "sqlcmd": ("-P",),
    "bcp": ("-P",),
    "ldapsearch": ("-w",),
    "ldapmodify": ("-w",),
    "7z": ("-p+",),
    "unzip": ("-P",),
    "zip": ("-P",),
    "openssl": ("-k", "-K"),
    "smbclient": ("-U%",),
    "lftp": ("-u,",),
}
"""Options that take a secret: as the next word; with `+`, as the rest of the same word; with another sign, after that
sign."""
_LOGIN_TOOLS = frozenset({"az", "docker", "helm", "oc", "podman"})
"""Tools whose `-p` is a password in their `login` command, and a port in others."""


class Masker:
    """Masks the secrets of one run. Each secret value gets one name."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._marks: dict[str, str] = {}
        self._values_by_name: dict[str, str] = {}

    def mask(self, name: str, value: str) -> str:
        """The mark that replaces a secret."""
        mark = self._marks.get(value)
        if mark is None:
            plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name[-80:]).strip("-._") or "value"
            chosen, number = plain, 1
            while self._values_by_name.setdefault(chosen, value) != value:
                number += 1
                chosen = f"{plain}-{number}"
            mark = self._marks[value] = f"***{self._prefix}{chosen}***"
        return mark

    def arguments(self, words: Sequence[str]) -> tuple[str, ...]:
        """Mask the arguments of a command."""
        program = _program_index(words)
        masked = self._options(words, lambda index, word: self._word(word, code=index == program))
        if any("***aws-key-id" in word for word in masked):
            # The secret half of an AWS key has no recognisable shape but its length.
            masked = [_AWS_SECRET.sub(lambda key: self.mask("aws-secret", key[0]), word) for word in masked]
        return tuple(masked)

    def text(self, text: str, *, code: bool = False) -> str:
        """Mask any text, such as an error message. With `code`, only quoted strings count as values of names."""
        if len(text) < 6:
            return text
        if "PRIVATE KEY" in text:
            text = _PEM.sub(lambda found: self.mask("private-key", found[0]), text)
        text = self._pairs(text, code)
        if "://" in text:
            text = _AUTHORITY.sub(self._url, text)
        if "earer" in text or "EARER" in text:
            text = _BEARER.sub(self._bearer, text)
        return replace_shapes(text, self.mask)

    def value(self, name: str, value: str) -> str:
        """Mask a named value, such as a parameter."""
        if is_secret_name(name) and is_secret_value(name, value):
            return self.mask(name, value)
        if "\n" in value:
            value = _SETTING_LINE.sub(self._setting, value)
        return self.text(value, code=True)

    def _setting(self, found: re.Match[str]) -> str:
        head, name, value = found.groups()
        if not is_secret_name(name) or not is_secret_value(name, value, code=True):
            return found[0]
        return f"{head}{self.mask(name, value)}"

    def _options(self, words: Sequence[str], other: Callable[[int, str], str]) -> list[str]:
        """Mask the values of options with a secret's name, and of known tools' options. `other` masks other words."""
        result: list[str] = []
        tool_options: tuple[str, ...] = ()
        expected: tuple[str, str] | None = None
        for index, word in enumerate(words):
            masked = None
            if expected is not None and not (_OPTION.fullmatch(word) and not expected[1]):
                masked = self._secret_of(word, *expected)
                expected = None
            else:
                base = word.rsplit("/", 1)[-1].lower()
                tool_options = ("-p",) if base in _LOGIN_TOOLS and "login" in words else _TOOLS.get(base, tool_options)
                masked, expected = self._option(word, tool_options)
            result.append(other(index, word) if masked is None else masked)
        return result

    def _option(self, word: str, tool_options: Iterable[str]) -> tuple[str | None, tuple[str, str] | None]:
        """The masked word, if it is an option that contains a secret; name and sign, if the next word is the secret."""
        for option in tool_options:
            flag, sign = (option, "") if option[-1].isalpha() else (option[:-1], option[-1])
            if sign == "+":
                if word.startswith(flag) and len(word) > len(flag):
                    return flag + self.mask("password", word[len(flag) :]), None
            elif word == flag:
                return None, ("password", sign or "=")
            elif sign and word.startswith(flag) and sign in word:
                return self._secret_of(word, "password", sign), None
        if _OPTION.fullmatch(word) and is_secret_name(word):
            return None, (word.lstrip("-"), "")
        return None, None

    def _secret_of(self, word: str, name: str, sign: str) -> str | None:
        """The masked word if it is a secret, or contains one after a sign; None if not."""
        _, found, secret = word.partition(sign) if sign not in ("", "=") else ("", "=", word)
        quote = secret[:1] if secret[:1] in ("'", '"') and secret[:1] == secret[-1:] and len(secret) > 1 else ""
        inner = secret[1:-1] if quote else secret
        if not found or not is_secret_value(name, inner):
            return None
        return f"{word[: len(word) - len(secret)]}{quote}{self.mask(name, inner)}{quote}"

    def _word(self, word: str, *, code: bool = False) -> str:
        pair = None if code else _WHOLE_PAIR.fullmatch(word)
        if pair is not None and is_secret_name(pair[1]) and is_secret_value(pair[1], pair[3]):
            return f"{pair[1]}{pair[2]}{self.mask(pair[1], pair[3])}"
        if not code and any(char.isspace() for char in word):
            # A command within an argument: `sh -c "mysql -psecret"`.
            pieces = re.split(r"(\s+)", word)
            pieces[::2] = self._options(pieces[::2], lambda _, piece: piece)
            word = "".join(pieces)
        return self.text(word, code=code)

    def _pairs(self, text: str, code: bool) -> str:
        pieces: list[str] = []
        done = 0
        for pair in _PAIR.finditer(text):
            if pair.start() < done or not self._names_secret(text, pair):
                continue
            name = pair[1]
            begin, end = self._value_span(text, pair.end(), code, name)
            value = text[begin:end]
            if end > begin and is_secret_value(name, value, code=code):
                pieces += [text[done:begin], self.mask(name, value)]
                done = end
        return "".join([*pieces, text[done:]]) if pieces else text

    def _names_secret(self, text: str, pair: re.Match[str]) -> bool:
        if is_secret_name(pair[1]):
            return True
        # In a signed URL, the value of `sig` grants access.
        return pair[1].lower() in ("sig", "signature") and text[max(0, pair.start() - 1) : pair.start()] in (
            "?",
            "&",
            ";",
        )

    def _value_span(self, text: str, begin: int, code: bool, name: str) -> tuple[int, int]:
        """The start and end of the value."""
        quote = _QUOTE.match(text, begin)
        if quote is not None:
            end = text.find(quote[1], quote.end())
            line = text.find("\n", quote.end()) if len(quote[1].lstrip("\\")) == 1 else -1
            if end < 0 or 0 <= line < end:
                end = line if line >= 0 else len(text)
            return quote.end(), end
        if code or is_reference(text, begin):
            return begin, begin
        rest = _REST if name.lower().endswith(("authorization", "cookie")) else _BARE
        found = rest.match(text, begin)
        return begin, begin if found is None else found.end()

    def _url(self, found: re.Match[str]) -> str:
        scheme, rest = found[1], found[2]
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" not in authority:
            port = authority.partition(":")[2]
            if not port or port.isdigit() or "@" not in rest:
                return found[0]
            authority = rest  # the password contains a slash
        user, _, host = authority.rpartition("@")
        name, colon, password = user.partition(":")
        after = f"@{host}{rest[len(authority) :]}"
        if colon and password and is_secret_value("password", password):
            return f"{scheme}://{name}:{self.mask('url-password', password)}{after}"
        if not colon and len(name) >= _UNNAMED_USER and is_secret_value("password", name):
            return f"{scheme}://{self.mask('url-token', name)}{after}"
        if colon and not password and len(name) >= _UNNAMED_USER and is_secret_value("password", name):
            return f"{scheme}://{self.mask('url-token', name)}:{after}"
        return found[0]

    def _bearer(self, found: re.Match[str]) -> str:
        token = found[1]
        if not any(char.isdigit() for char in token) and len(token) < _UNNAMED_USER:
            return found[0]
        return found[0][: found.start(1) - found.start()] + self.mask("bearer-token", token)


def _program_index(words: Sequence[str]) -> int | None:
    """The index of the word that is Python code, as in `python -X dev -c CODE`."""
    if not words or not words[0].rsplit("/", 1)[-1].startswith(("python", "pypy")):
        return None
    for index, word in enumerate(words[1:], start=1):
        if word == "-c":
            return index + 1
        if not word.startswith("-") and words[index - 1] not in ("-X", "-W"):
            return None
    return None


@lru_cache(maxsize=8)
def mask_arguments(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command with its secrets masked."""
    return Masker().arguments(words)


def mask_text(text: str) -> str:
    """A text with its secrets masked."""
    return Masker().text(text)


def mask_params(values: Mapping[str, Json]) -> dict[str, Json]:
    """Parameters with their secrets masked, by name and by shape."""
    masker = Masker()

    def masked(name: str, value: Json) -> Json:
        if type(value) is str:
            return masker.value(name, value)
        if type(value) is dict:
            # In `{"credentials": {"id": …}}` each string is a secret, in `{"name": "password", "value": …}` the value.
            label = value.get("name", value.get("key"))
            secret_label = label if isinstance(label, str) and is_secret_name(label) else None
            return {
                key: masked(
                    secret_label if secret_label and key == "value" else name if is_secret_name(name) else key, item
                )
                for key, item in value.items()
            }
        if type(value) is list:
            return [masked(name, item) for item in value]
        return value

    return {name: masked(name, value) for name, value in values.items()}


def masks_secrets() -> bool:
    """Whether secrets are masked: yes, unless the nearest `everloop.toml` has `[tracking] mask = false`."""
    try:
        config = nearest_config(Path.cwd())
        return config is None or _setting(config, config.stat().st_mtime_ns)
    except OSError:
        return True


@lru_cache(maxsize=8)
def _setting(config: Path, changed_at: int) -> bool:
    import tomllib

    try:
        found: Any = tomllib.loads(config.read_text(encoding="utf-8")).get("tracking", {})
        return not (isinstance(found, dict) and found.get("mask") is False)
    except (OSError, ValueError):
        return True
