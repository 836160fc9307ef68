"""Pagination: pages of a list, and the opaque token for the next page."""

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
    """The position of a page: it begins at the row `offset`."""

    offset: int = 0

    @classmethod
    def of(cls, token: str) -> Page:
        if not token:
            return cls()
        try:
            content = json.loads(base64.b64decode(token, validate=True))
            offset = content["offset"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            raise MlflowError("Invalid page token, could not base64-decode") from None
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise MlflowError(f"Invalid page token, parsed offset={offset}")
        return cls(offset)

    def token(self) -> str:
        return base64.b64encode(json.dumps({"offset": self.offset}).encode()).decode()


def paged(rows: Sequence[Any], page: Page, size: int, out: Callable[[Any], Any], name: str) -> dict[str, Any]:
    """Return one page of the rows, as a response with the list `name`."""
    shown = rows[page.offset : page.offset + size]
    response: dict[str, Any] = {name: [out(row) for row in shown]} if shown else {}
    if len(rows) > page.offset + size:
        response["next_page_token"] = Page(page.offset + size).token()
    return response
