"""Lists in pages, and the opaque tokens by which clients ask for the next."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from everloop.integrations.mlflow.tracking_api.codec import MlflowError


@dataclass(frozen=True, slots=True)
class Page:
    """Where a list goes on: at the row `offset`."""

    offset: int = 0

    @classmethod
    def of(cls, token: str) -> Page:
        if not token:
            return cls()
        try:
            said = json.loads(base64.b64decode(token, validate=True))
            offset = said["offset"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise MlflowError("Invalid page token, could not base64-decode") from None
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise MlflowError(f"Invalid page token, parsed offset={offset}")
        return cls(offset)

    def token(self) -> str:
        return base64.b64encode(json.dumps({"offset": self.offset}).encode()).decode()


def paged(rows: Sequence[Any], page: Page, size: int, out: Callable[[Any], Any], name: str) -> dict[str, Any]:
    """One page out of all rows, as an answer whose list is called `name`."""
    shown = rows[page.offset : page.offset + size]
    answer: dict[str, Any] = {name: [out(row) for row in shown]} if shown else {}
    if len(rows) > page.offset + size:
        answer["next_page_token"] = Page(page.offset + size).token()
    return answer
