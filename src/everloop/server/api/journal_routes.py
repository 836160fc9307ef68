"""HTTP route that receives the journals of runs on other machines.

POST /api/v1/journals?writer=NAME&offset=N      raw frames of a run's journal; see tracking/journal/ingest.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import post

from everloop.errors import UsageError
from everloop.server.request_context import NEEDS, ApiRequest, store_of
from everloop.tracking.journal.ingest import ingest_frames

if TYPE_CHECKING:
    from everloop.server.server_options import ServerOptions
    from everloop.stores import Store


def make_routes(store: Store, options: ServerOptions) -> list[Any]:
    """Return the routes for the control plane."""
    return [journals]


@post("/api/v1/journals", status_code=200, opt={NEEDS: "editor"})
async def journals(request: ApiRequest) -> dict[str, int]:
    """Store frames of a journal, each once. Returns the offset from which to send the next ones."""
    import anyio.to_thread

    writer = request.query_params.get("writer", "")
    try:
        offset = int(request.query_params.get("offset", "0"))
    except ValueError:
        raise UsageError(
            "'offset' is not a whole number.", help="Send the byte position in the journal at which the body begins."
        ) from None
    body = await request.body()
    store = store_of(request)
    return {"next_offset": await anyio.to_thread.run_sync(ingest_frames, store, writer, offset, body)}
