"""Files that stay as they are: those of versions that people have agreed to, or are asked to agree to.

A guarded alias moves when others agree, and what they agree to is a version's files. So behind the proxy these can no
longer be changed while the version holds such an alias, or while a request for one is open or approved; who wants
others registers another version. What clients write themselves, on a shared disk or in a bucket, is theirs to guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from everloop.errors import EverloopError
from everloop.integrations.mlflow.tracking_api.codec import MlflowError
from everloop.integrations.mlflow.tracking_api.files.artifact_location import safe_parts
from everloop.integrations.mlflow.tracking_api.model_version_routes import files_uri
from everloop.records import AliasPolicy
from everloop.registry import find_alias
from everloop.registry.approvals import list_requests
from everloop.registry.model_versions import get_version

if TYPE_CHECKING:
    from everloop.integrations.mlflow.tracking_api.files.allowed_locations import ArtifactLocations
    from everloop.integrations.mlflow.tracking_api.files.artifact_location import ArtifactLocation
    from everloop.stores import Store


def check_changeable(store: Store, places: ArtifactLocations, folder: ArtifactLocation, path: str) -> None:
    """Refuse to change a file, or a folder with what is in it, that belongs to what was agreed to.

    Raises:
        MlflowError: it does.
    """
    policies = store.records.find(AliasPolicy)
    if not policies:
        return
    wanted = safe_parts(path)
    for policy in policies:
        for key in dict.fromkeys(_agreed(store, policy)):
            own = _parts(store, places, folder, key)
            if own is not None and own[: len(wanted)] == wanted[: len(own)]:
                raise MlflowError(
                    f"The files of '{key}' stay as they are: '{policy.key}' moves only where others agree, and it is"
                    " what they agree to. Register another version.",
                    "PERMISSION_DENIED",
                )


def _agreed(store: Store, policy: AliasPolicy) -> Iterator[str]:
    """Keys of the versions that hold the alias, or are asked for it."""
    held = find_alias(store, policy.model, policy.alias)
    if held is not None:
        yield held.version
    for state in ("open", "approved"):
        yield from (one.version for one in list_requests(store, policy.model, policy.alias, state=state))


def _parts(store: Store, places: ArtifactLocations, folder: ArtifactLocation, key: str) -> tuple[str, ...] | None:
    """Where in the folder a version's files are; None where they are elsewhere."""
    try:
        kept, within = places.find(files_uri(store, get_version(store, key)))
        return safe_parts(within) if kept is folder else None
    except EverloopError:
        return None
