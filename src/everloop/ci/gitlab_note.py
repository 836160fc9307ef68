"""Write the report on a change as one note on a merge request of GitLab, replacing the earlier one.

API: https://docs.gitlab.com/api/notes/#merge-requests
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from everloop.ci.comment import MARKER
from everloop.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 30.0
_MOST_PAGES = 50
_NUMBER = re.compile(r"[0-9]+")


def post_note(text: str, environment: Mapping[str, str]) -> str:
    """Create or replace the note. Returns `created` or `updated`.

    Args:
        text: the note; it begins with the marker of the report.
        environment: variables of the job: `CI_API_V4_URL`, `CI_PROJECT_ID`, `CI_MERGE_REQUEST_IID`, and
            `EVERLOOP_GITLAB_TOKEN`.

    Raises:
        UsageError: a variable is missing or invalid, or the text is not a report.
        UnavailableError: GitLab cannot be reached, or refuses.
    """
    import httpx

    if not text.startswith(MARKER):
        raise UsageError("The file is not a report of everloop.", help="Write it with: everloop ci run --comment FILE")
    names = ("CI_API_V4_URL", "CI_PROJECT_ID", "CI_MERGE_REQUEST_IID", "EVERLOOP_GITLAB_TOKEN")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UsageError(
            f"The variable {missing[0]} is not set.", help="Run this in a job of a merge request of GitLab."
        )
    address, project, request, token = (environment[name] for name in names)
    if not (_NUMBER.fullmatch(project) and _NUMBER.fullmatch(request)):
        raise UsageError("CI_PROJECT_ID and CI_MERGE_REQUEST_IID must be numbers.")
    path = f"{address.rstrip('/')}/projects/{project}/merge_requests/{request}/notes"
    try:
        with httpx.Client(headers={"PRIVATE-TOKEN": token}, timeout=_TIMEOUT_S) as client:
            earlier = _earlier(client, path)
            if earlier is None:
                client.post(path, json={"body": text}).raise_for_status()
                return "created"
            client.put(f"{path}/{earlier}", json={"body": text}).raise_for_status()
            return "updated"
    except httpx.HTTPStatusError as error:
        raise UnavailableError(
            f"GitLab answered with the status {error.response.status_code}.",
            help="The token needs the scope 'api' and at least the role Reporter.",
        ) from error
    except httpx.HTTPError as error:
        raise UnavailableError(f"GitLab cannot be reached at '{address}': {error}.") from error


def _earlier(client: Any, path: str) -> int | None:
    for page in range(1, _MOST_PAGES + 1):
        response = client.get(path, params={"per_page": 100, "page": page, "sort": "asc"})
        response.raise_for_status()
        notes = response.json()
        for note in notes:
            if not note.get("system") and str(note.get("body", "")).startswith(MARKER):
                return int(note["id"])
        if len(notes) < 100:
            return None
    return None
