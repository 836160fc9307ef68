"""Protects the files of model versions that were approved or are waiting for approval.

An alias with a policy moves only with approvals, and an approval is for a version's files. So files behind the artifact
proxy cannot be changed while their version has such an alias, or while a request to move the alias to it is open or
approved. To change the files, register another version. Files that clients write directly, on a shared disk or in a
bucket, are not protected.
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


def check_changeable(store: Store, locations: ArtifactLocations, folder: ArtifactLocation, path: str) -> None:
    """Check that a file or folder may be changed.

    Raises:
        MlflowError: it has files of a protected version.
    """
    policies = store.records.find(AliasPolicy)
    if not policies:
        return
    wanted = safe_parts(path)
    for policy in policies:
        for key in dict.fromkeys(_protected_versions(store, policy)):
            version_parts = _parts(store, locations, folder, key)
            if version_parts is not None and version_parts[: len(wanted)] == wanted[: len(version_parts)]:
                raise MlflowError(
                    f"The files of '{key}' cannot be changed: the alias '{policy.key}' needs approvals, which are for"
                    " these files. Register another version.",
                    "PERMISSION_DENIED",
                )


def _protected_versions(store: Store, policy: AliasPolicy) -> Iterator[str]:
    """Yield the keys of the version that has the alias, and of those with a pending request for it."""
    alias = find_alias(store, policy.model, policy.alias)
    if alias is not None:
        yield alias.version
    for state in ("open", "approved"):
        yield from (request.version for request in list_requests(store, policy.model, policy.alias, state=state))


def _parts(store: Store, locations: ArtifactLocations, folder: ArtifactLocation, key: str) -> tuple[str, ...] | None:
    """Return the path of a version's files in the folder; None if they are elsewhere."""
    try:
        location, within = locations.find(files_uri(store, get_version(store, key)))
        return safe_parts(within) if location is folder else None
    except EverloopError:
        return None
