"""HTTP route by which people edit the contract of a dataset. It needs the role `editor`.

PUT /api/v1/contracts/DATASET      {text, expect?, reason?}; `text` is the whole contract as TOML
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar import put

from everloop.records import Contract
from everloop.server.api.registry_routes import Why
from everloop.server.request_context import NEEDS, ApiRequest, JsonBody, store_of
from everloop.server.request_values import Name, Text
from everloop.server.server_options import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EditedContract:
    """`expect`: the key of the contract that was edited; if there is a newer one, the request fails with 409."""

    text: Text
    expect: Name | None = None
    reason: Why = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedContract:
    """`file`: name of the project's file that was changed as well, relative to the project; None if it has none."""

    contract: Contract
    file: str | None


def routes(options: ServerOptions) -> list[Any]:
    """Return the routes of a server with these options."""

    @put("/api/v1/contracts/{dataset:str}", sync_to_thread=True, opt={NEEDS: "editor"})
    def edit(request: ApiRequest, data: JsonBody[EditedContract]) -> SavedContract:
        """Save an edited contract as the newest one of a dataset."""
        from everloop.data.contracts.contract_editing import edit_contract

        contract, path = edit_contract(
            store_of(request),
            request.path_params["dataset"],
            data.text,
            expect=data.expect,
            folder=options.project_folder,
            reason=data.reason,
        )
        return SavedContract(contract=contract, file=f"contracts/{path.name}" if path is not None else None)

    return [edit]
