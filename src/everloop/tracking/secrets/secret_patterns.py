"""Secrets that are recognised by their shape: keys and tokens of services with known prefixes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def _mixed(text: str) -> bool:
    """Whether a text is a key and not words: some part of it is a long mixture of letters and digits."""
    return any(
        len(part) >= 16 and any(char.isdigit() for char in part) and any(char.isalpha() for char in part)
        for part in re.split(r"[-_]", text)
    )


_EDGE = r"(?<![A-Za-z0-9])"
_SHAPES: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...] = tuple(
    (name, re.compile(_EDGE + pattern), check)
    for name, pattern, check in (
        ("github-token", r"gh[pousr]_[A-Za-z0-9]{20,}+", None),
        ("github-token", r"github_pat_[A-Za-z0-9_]{20,}+", None),
        ("gitlab-token", r"gl(?:pat|dt|rt|cbt|ptt|soat)-[A-Za-z0-9_-]{16,}+", None),
        ("slack-token", r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}+", None),
        ("slack-token", r"xapp-[A-Za-z0-9-]{10,}+", None),
        ("slack-webhook", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,}+", None),
        ("discord-webhook", r"discord(?:app)?\.com/api/webhooks/[A-Za-z0-9/_-]{20,}+", None),
        ("openai-key", r"sk-[A-Za-z0-9_-]{20,}+", _mixed),
        ("groq-key", r"gsk_[A-Za-z0-9]{32,}+", None),
        ("stripe-key", r"[rsp]k_(?:live|test)_[A-Za-z0-9]{16,}+", None),
        ("webhook-secret", r"whsec_[A-Za-z0-9+/=]{20,}+", None),
        ("huggingface-token", r"hf_[A-Za-z0-9]{30,}+", None),
        ("huggingface-token", r"api_org_[A-Za-z0-9]{30,}+", None),
        ("aws-key-id", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])", None),
        ("google-key", r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", None),
        ("google-token", r"ya29\.[A-Za-z0-9_-]{20,}+", None),
        ("google-secret", r"GOCSPX-[A-Za-z0-9_-]{20,}+", None),
        ("azure-secret", r"[A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{31,}+", None),
        ("azure-key", r"[A-Za-z0-9+/]{86}==", None),
        ("json-web-token", r"eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){0,3}", None),
        ("npm-token", r"npm_[A-Za-z0-9]{30,}+", None),
        ("pypi-token", r"pypi-[A-Za-z0-9_-]{40,}+", None),
        ("docker-token", r"dckr_[po]at_[A-Za-z0-9_-]{20,}+", None),
        ("sendgrid-key", r"SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+", None),
        ("digitalocean-token", r"do[opr]_v1_[a-f0-9]{40,}+", None),
        ("databricks-token", r"dapi[a-f0-9]{32}", None),
        ("vault-token", r"hv[sbr]\.[A-Za-z0-9_-]{20,}+", None),
        ("nvidia-key", r"nvapi-[A-Za-z0-9_-]{40,}+", None),
        ("replicate-token", r"r8_[A-Za-z0-9]{30,}+", None),
        ("perplexity-key", r"pplx-[A-Za-z0-9]{40,}+", None),
        ("telegram-token", r"\d{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])", None),
        ("age-key", r"AGE-SECRET-KEY-1[0-9A-Z]{40,}+", None),
        ("everloop-token", r"evl_[A-Za-z0-9_-]{30,}+", None),
    )
)
_BEGINNINGS = re.compile(
    r"gh[pousr]_|github_pat_|gl[a-z]{2,4}-|xox|xapp-|/webhooks/|hooks\.slack|sk-|gsk_|[rsp]k_|whsec_|hf_|api_org_"
    r"|A[A-Z]{3}[A-Z0-9]{4}|AIza|ya29|GOCSPX|8Q~|==|eyJ|npm_|pypi-|dckr_|SG\.|do[opr]_v1|dapi|hv[sbr]\.|nvapi|r8_|pplx-"
    r"|:AA|AGE-|evl_"
)


def replace_shapes(text: str, mask: Callable[[str, str], str]) -> str:
    """The text with every key of a known shape replaced by the result of `mask(name, key)`."""
    if _BEGINNINGS.search(text) is None:
        return text
    for name, shape, check in _SHAPES:
        for key in shape.findall(text):
            if check is None or check(key):
                text = text.replace(key, mask(name, key))
    return text
