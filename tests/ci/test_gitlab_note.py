"""The note on a merge request is created once and then replaced, over the API of GitLab."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from everloop.ci.comment import MARKER
from everloop.ci.gitlab_note import post_note
from everloop.errors import UnavailableError, UsageError


class GitLab:
    """The notes API of GitLab: pages of notes, POST and PUT, for one token."""

    def __init__(self) -> None:
        self.notes: list[dict] = [{"id": number, "body": f"note {number}", "system": False} for number in range(150)]
        self.notes.append({"id": 900, "body": f"{MARKER} by the system", "system": True})
        gitlab = self

        class Answers(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def answer(self, status: int, content: object) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def body(self) -> str:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))["body"]

            def allowed(self) -> bool:
                right = self.path.startswith("/api/v4/projects/7/merge_requests/3/notes")
                return right and self.headers["PRIVATE-TOKEN"] == "secret"

            def do_GET(self) -> None:
                if not self.allowed():
                    return self.answer(401, {})
                page = int(parse_qs(urlsplit(self.path).query)["page"][0])
                return self.answer(200, gitlab.notes[(page - 1) * 100 : page * 100])

            def do_POST(self) -> None:
                gitlab.notes.append({"id": 1000, "body": self.body(), "system": False})
                self.answer(201, {})

            def do_PUT(self) -> None:
                number = int(self.path.rpartition("/")[2])
                next(note for note in gitlab.notes if note["id"] == number)["body"] = self.body()
                self.answer(200, {})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.variables = {
            "CI_API_V4_URL": f"http://127.0.0.1:{self.server.server_port}/api/v4",
            "CI_PROJECT_ID": "7",
            "CI_MERGE_REQUEST_IID": "3",
            "EVERLOOP_GITLAB_TOKEN": "secret",
        }


@pytest.fixture
def gitlab() -> Iterator[GitLab]:
    made = GitLab()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_the_note_is_created_and_then_replaced(gitlab):
    assert post_note(f"{MARKER}\nfirst", gitlab.variables) == "created"
    assert post_note(f"{MARKER}\nsecond", gitlab.variables) == "updated"
    own = [note for note in gitlab.notes if note["body"].startswith(MARKER) and not note["system"]]
    assert [note["body"] for note in own] == [f"{MARKER}\nsecond"]


def test_a_refusal_says_what_the_token_needs(gitlab):
    with pytest.raises(UnavailableError, match=r"401.*'api'"):
        post_note(MARKER, {**gitlab.variables, "EVERLOOP_GITLAB_TOKEN": "wrong"})


def test_missing_and_hostile_variables_are_refused(gitlab):
    with pytest.raises(UsageError, match="CI_PROJECT_ID"):
        post_note(MARKER, {**gitlab.variables, "CI_PROJECT_ID": ""})
    with pytest.raises(UsageError, match="numbers"):
        post_note(MARKER, {**gitlab.variables, "CI_MERGE_REQUEST_IID": "../../users"})
    with pytest.raises(UsageError, match="not a report"):
        post_note("hello", gitlab.variables)
