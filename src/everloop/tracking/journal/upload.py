"""Upload of journals to a server: everything that is logged here arrives there, each point exactly once.

An uploader only reads journals, so a run does not depend on whether the server is available. It stores no state; the
server knows the offset of each journal. Once an uploader has been created, journals that have been folded here stay in
`outbox/` until the server has received them completely. `upload_journals` sends what a machine without a network has
collected. Metrics, parameters, tags and ends are uploaded; artifacts are not.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import CorruptionError, NotFoundError, StoreVersionError, UnavailableError, UsageError
from everloop.stores.journals import HEADER, list_journals, read_journal, stream_of, writer_alive
from everloop.tracking.journal.run_folding import OUTBOX, STREAM_PREFIX

if TYPE_CHECKING:
    from types import TracebackType

    import httpx

_log = logging.getLogger("everloop.tracking")

PATH = "/api/v1/journals"
BATCH_BYTES = 256 << 10
_PAUSE_S = (0.5, 60.0)
_BUSY = (408, 425, 429)


class JournalUploader:
    """Uploads new frames of a home's journals.

    After `start` it does so in a daemon thread until `stop`; otherwise, at each call of `upload`. Several uploaders may
    work on the same folder.

    Args:
        journals: the folder `journals` of a home.
        url: URL of the server, such as `https://host:8100`.
        token: an access token with the right to write runs there.
        timeout_s: how long the upload of one batch may take.

    Raises:
        UsageError: the URL is not valid.
    """

    def __init__(self, journals: Path | str, url: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        import httpx

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"'{url}' is not the URL of a server.", help="Pass a URL such as https://host:8100")
        self.journals = Path(journals)
        self.outbox = self.journals / OUTBOX
        self.outbox.mkdir(parents=True, exist_ok=True)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout_s)
        self._url = url
        self._offsets: dict[str, int] = {}
        self._refused: set[str] = set()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def upload(self) -> int:
        """Upload all new frames once. Returns the number of bytes that the server has accepted.

        Raises:
            UnavailableError: the server does not respond, or is not able to accept them now.
        """
        sent = 0
        for path in [*list_journals(self.outbox), *list_journals(self.journals)]:
            if stream_of(path).startswith(STREAM_PREFIX) and path.stem not in self._refused:
                sent += self._upload_journal(path)
        return sent

    def start(self, every_s: float = 5.0) -> JournalUploader:
        """Upload every few seconds, less often while the server does not respond."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._upload_until_stopped, args=(every_s,), name="everloop-journal-upload", daemon=True
            )
            self._thread.start()
        return self

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Upload once more, then end. Frames that the server did not accept remain for the next upload."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._client.close()

    def __enter__(self) -> JournalUploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _upload_until_stopped(self, every_s: float) -> None:
        pause = _PAUSE_S[0]
        while True:
            last = self._done.is_set()
            wait = every_s
            try:
                self.upload()
                pause = _PAUSE_S[0]
            except UnavailableError as error:
                _log.info("Journals cannot be uploaded now: %s", error)
                # The wait is random, so that many clients of the same server do not all return at the same time.
                wait = pause * (0.5 + random.random())  # noqa: S311 - not used for security
                pause = min(2 * pause, _PAUSE_S[1])
            except OSError as error:
                _log.warning("Journals cannot be read for upload: %s", error)
            if last:
                return
            self._done.wait(wait)

    def _upload_journal(self, path: Path) -> int:
        writer = path.stem
        finished = path.parent == self.outbox and not writer_alive(path)
        offset = self._offsets.get(writer)
        if offset is None:
            offset = self._post(writer, 0, b"")
            if offset is None or offset > _size(path):
                return 0  # the server refused it, it was removed, or the server has another journal of that name
        sent = 0
        try:
            while batch := _batch(path, offset):
                next_offset = self._post(writer, offset, batch)
                if next_offset is None or next_offset == offset or next_offset > offset + len(batch):
                    return sent  # the response does not match the batch: keep the journal
                # A server that was restored from an older backup requests an earlier offset.
                sent += max(0, next_offset - offset)
                offset = self._offsets[writer] = next_offset
        except NotFoundError:
            return sent  # it was folded and moved; the next upload finds it in the outbox
        except (CorruptionError, StoreVersionError) as error:
            _log.error("The rest of the journal '%s' cannot be uploaded: %s", path, error)
            self._refused.add(writer)
            return sent
        self._offsets[writer] = offset
        if finished:
            path.unlink(missing_ok=True)
        return sent

    def _post(self, writer: str, offset: int, body: bytes) -> int | None:
        """Send a batch. Returns the offset that the server expects next; None if it refuses this journal for good."""
        import httpx

        params: dict[str, str | int] = {"writer": writer, "offset": offset}
        headers = {"content-type": "application/octet-stream"}
        try:
            response = self._client.post(PATH, params=params, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"The server '{self._url}' does not respond: {error or type(error).__name__}."
            ) from error
        if response.status_code >= 500 or response.status_code in _BUSY:
            raise UnavailableError(
                f"The server '{self._url}' responded to a journal upload with status {response.status_code}."
            )
        if response.status_code in (401, 403, 404):
            raise UnavailableError(
                f"The server '{self._url}' responded to a journal upload with status {response.status_code}.",
                help="Check the URL, and the rights of the token.",
            )
        next_offset = _offset_of(response)
        if next_offset is None:
            _log.error("The server refuses the journal '%s': %s", writer, response.text[:300])
            self._refused.add(writer)
        return next_offset


def upload_journals(
    journals: Path | str, url: str, token: str | None = None, *, patience_s: float = 60.0, timeout_s: float = 30.0
) -> int:
    """Upload all journals of a home. Returns the number of bytes that the server has accepted.

    Args:
        patience_s: how long to try again while the server does not respond.

    Raises:
        UnavailableError: the server did not respond for that long. The next call continues after the frames that have
            arrived.
    """
    deadline = time.monotonic() + patience_s
    pause = _PAUSE_S[0]
    with JournalUploader(journals, url, token, timeout_s=timeout_s) as uploader:
        sent = 0
        while True:
            try:
                sent += uploader.upload()
                return sent
            except UnavailableError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S[1])


def _batch(path: Path, offset: int) -> bytes:
    """Complete frames after an offset, up to the size of a batch; at least one frame, if there is one."""
    begin = end = max(offset, len(HEADER))
    for _, frame_end in read_journal(path, begin):
        if frame_end - begin > BATCH_BYTES and end > begin:
            break
        end = frame_end
        if end - begin >= BATCH_BYTES:
            break
    if end == begin:
        return b""
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _offset_of(response: httpx.Response) -> int | None:
    if response.status_code >= 300:
        return None
    try:
        offset = response.json().get("next_offset")
    except (ValueError, AttributeError):
        return None
    return offset if type(offset) is int and offset >= len(HEADER) else None
