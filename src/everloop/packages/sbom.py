"""The software bill of materials (SBOM) of a package: CycloneDX 1.6 as JSON.

Source: https://cyclonedx.org/docs/1.6/json/. Names and versions come from the package's pinned environment; licences
come from the distributions that are installed here in exactly that version.
"""

from __future__ import annotations

import re
import uuid
from importlib.metadata import PackageNotFoundError, metadata
from typing import TYPE_CHECKING, Any

from everloop.version import VERSION

if TYPE_CHECKING:
    from everloop.packages.environment_lock import Locked
    from everloop.packages.package_manifest import Manifest
    from everloop.records import Json


def environment_sbom(manifest: Manifest, *, name: str, version: str = "", digest: str = "") -> dict[str, Json]:
    """Return the SBOM of a package. The same package gives the same SBOM.

    Args:
        name: name of the model. version: its number, if it has one. digest: the package's, `sha256:…`.
    """
    bare = digest.removeprefix("sha256:")
    root = f"model:{name}" + (f"@{version}" if version else "")
    model: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": root, "name": name}
    if version:
        model["version"] = version
    if bare:
        model["hashes"] = [{"alg": "SHA-256", "content": bare}]
    environment = manifest.environment
    components = [
        _component(package, number, environment.locked.get(package))
        for package, number in sorted(environment.packages.items())
    ]
    refs = {item["name"]: item["bom-ref"] for item in components}
    components.append(
        {
            "type": "platform",
            "bom-ref": "python",
            "name": "python",
            "version": environment.python,
            "properties": [{"name": "everloop:platform", "value": environment.platform}],
        }
    )
    files = [
        {
            "type": "file",
            "bom-ref": f"file:{path}",
            "name": path,
            "hashes": [{"alg": "SHA-256", "content": found.removeprefix("sha256:")}],
        }
        for path, found in sorted(manifest.files.items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Derived from the content, so that two SBOMs of the same package are equal.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'everloop:{root}:{bare}')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "everloop", "version": VERSION}]},
            "component": model,
        },
        "components": [*components, *files],
        "dependencies": [
            {"ref": root, "dependsOn": [item["bom-ref"] for item in (*components, *files)]},
            *(
                {"ref": refs[name], "dependsOn": [refs[other] for other in one.requires]}
                for name, one in sorted(environment.locked.items())
                if one.requires
            ),
        ],
    }


def _component(name: str, number: str, locked: Locked | None) -> dict[str, Json]:
    purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{number}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": number,
        "purl": purl,
    }
    if locked is not None and locked.archive:
        component["hashes"] = [{"alg": "SHA-256", "content": locked.archive.removeprefix("sha256:")}]
    if locked is not None and locked.content:
        component["properties"] = [{"name": "everloop:content", "value": locked.content}]
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return component
    if found["Version"] == number:
        expression = (found.get_all("License-Expression") or [""])[0]
        short = (found.get_all("License") or [""])[0]
        if expression:
            component["licenses"] = [{"expression": expression}]
        elif short and "\n" not in short and len(short) < 80:
            component["licenses"] = [{"license": {"name": short}}]
    return component
