"""Taking in what other machines have logged.

POST /api/v1/journals?writer=NAME&offset=N      frames of a run's journal as they are; see tracking/journal/ingest.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Request, post

from everloop.errors import UsageError
from everloop.server.request_context import NEEDS, store_of
from everloop.tracking.journal.ingest import ingest_frames

if TYPE_CHECKING:
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store

Asked = Request[Any, Any, Any]


def make_routes(store: Store, options: ServerOptions) -> list[Any]:
    """What the control plane mounts."""
    return [journals]


@post("/api/v1/journals", status_code=200, opt={NEEDS: "editor"})
async def journals(request: Asked) -> dict[str, int]:
    """Take frames of a journal, each once; answers from which offset the next are wanted."""
    import anyio.to_thread

    writer = request.query_params.get("writer", "")
    try:
        offset = int(request.query_params.get("offset", "0"))
    except ValueError:
        raise UsageError("'offset' is no whole number.", help="Send where in the journal the body begins.") from None
    body = await request.body()
    store = store_of(request)
    return {"next_offset": await anyio.to_thread.run_sync(ingest_frames, store, writer, offset, body)}
