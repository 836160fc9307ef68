"""Names of secrets, and values under such names that are not secrets."""

from __future__ import annotations

import re

MARK = re.compile(r"\*\*\*([A-Za-z0-9][A-Za-z0-9_.:@/-]{0,120}+)\*\*\*")
"""A masked value; the group is its name."""

_ALWAYS = re.compile(
    r"password|passwd|passphrase|passwort|pwd|userpwd|secret|secrets|credential|credentials|apikey|"
    r"secretkey|accesskey|privatekey|authtoken|accesstoken|apitoken|bearertoken|bearer|authorization|"
    r"cookie"
)
_ENDS = ("password", "passwd", "passphrase", "apikey", "secretkey", "accesskey", "authtoken", "accesstoken", "secret")
_KEYS = re.compile(
    r"access|account|admin|anthropic|api|app|auth|aws|azure|client|comet|crypt|decryption|deploy|"
    r"encryption|fernet|hf|hmac|huggingface|license|master|neptune|openai|private|secret|service|"
    r"shared|signing|ssh|storage|subscription|wandb|webhook"
)
_WORD_TOKENS = re.compile(
    r"bos|class|cls|end|eos|first|image|last|mask|max|min|next|num|oov|pad|per|prefix|prompt|"
    r"sep|special|start|stop|suffix|think|unk|audio|video|blank"
)
_WORDS_BEFORE_PASS = re.compile(r"backward|band|by|first|forward|high|last|low|multi|one|per|second|single|two")
_SWITCHES = re.compile(r"ask|disable|enable|has|hide|no|prompt|require|requires|show|skip|without")
_MAYBE_NUMBERS = frozenset({"auth", "key", "pass", "pat", "sig", "token"})
_MANY = re.compile(r"passwords|passwds|passphrases|apikeys|secretkeys|accesskeys|authtokens|accesstokens|apitokens")
_OPENING_TOKENS = re.compile(r"access|api|auth|bearer|bot|csrf|deploy|github|gitlab|hf|id|refresh|session|slack")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PARTS = re.compile(r"[^A-Za-z0-9]+")


def is_secret_name(name: str) -> bool:
    """Whether a name is that of a secret, judged mainly by its last word: `db.password` is, `password_file` is not."""
    words = [word.lower() for word in _PARTS.split(_CAMEL.sub("_", name[-200:])) if word]
    if not words:
        return False
    last = words[-1].rstrip("0123456789") or words[-1]
    before = words[-2] if len(words) > 1 else ""
    if _SWITCHES.fullmatch(words[0]):
        return False
    if _ALWAYS.fullmatch(last) or last.endswith(_ENDS) or _MANY.fullmatch(last):
        return True
    match last:
        case "tokens":
            # Most of these are counts: `max_tokens`, `prompt_tokens`.
            return bool(_OPENING_TOKENS.fullmatch(before))
        case "keys":
            return bool(_KEYS.fullmatch(before))
        case "token":
            return not _WORD_TOKENS.fullmatch(before)
        case "key":
            return bool(_KEYS.fullmatch(before))
        case "pass":
            return not _WORDS_BEFORE_PASS.fullmatch(before)
        case "auth" | "pat" | "sas":
            return True
        case "signature" | "sig":
            return before in ("amz", "goog", "sas")
    return False


_PLACEHOLDERS = re.compile(
    r"none|null|nil|true|false|yes|no|on|off|str|string|text|int|bool|bytes|any|optional|"
    r"required|basic|digest|oauth|oauth2|bearer|default|auto|interactive|stdin|prompt|keyring|env|"
    r"file|password|passwd|pass|pw|secret|token|x{2,20}"
)
_REFERENCE = re.compile(
    r"(?:(?:bearer|basic|token|apikey)\s{1,4}+)?+(?:\$\{[^}]*+\}|\$\([^)]*+\)|%\w++%|%s|%\(\w++\)s|\{\{?[^{}]*+\}?\}|<[^<>]*+>"
    r"|\[[A-Z]++\]|\*++)",
    re.IGNORECASE,
)
_ENDS_A_VALUE = frozenset(" \t\r\n;&,\"'<>|)}]")
_VARIABLE = re.compile(r"\$[A-Z_][A-Z0-9_]*+")
_FIELD = re.compile(r"\{[^{}]*+\}")
_SHORTEST = 6
_SMALL_NUMBER = re.compile(r"[-+]?\d{1,6}(?:\.\d{0,6}+)?")


def is_secret_value(name: str, value: str, *, code: bool = False) -> bool:
    """Whether a value under a secret's name is a secret: not empty, not a placeholder and not a reference.

    Args:
        code: whether the value is a string in source code, where `pass` and `token` have other uses, and `{…}` is
            filled in later.
    """
    plain = value.strip()
    if (
        not plain
        or _PLACEHOLDERS.fullmatch(plain.lower())
        or MARK.search(plain)
        or _REFERENCE.fullmatch(plain)
        or _VARIABLE.fullmatch(plain)
    ):
        return False
    words = [word.lower() for word in _PARTS.split(_CAMEL.sub("_", name)) if word]
    plain_word = bool(_SMALL_NUMBER.fullmatch(plain)) or (code and not any(char.isdigit() for char in plain))
    if plain_word and words and words[-1] in _MAYBE_NUMBERS:
        return False
    filled = _FIELD.sub("", plain) if code else plain
    return filled == plain or sum(char.isalnum() for char in filled) >= _SHORTEST


def is_reference(text: str, at: int) -> bool:
    """Whether the text at a position is only a reference to a value: `${PASSWORD}`, `{password}`."""
    found = _REFERENCE.match(text, at)
    return found is not None and text[found.end() : found.end() + 1] in ("", *_ENDS_A_VALUE)
