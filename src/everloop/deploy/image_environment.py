"""The environment in which a platform runs an image: its port, its file system and the keys to trust.

Sources: SageMaker, "Use your own inference code"; Vertex AI, "Custom container requirements".
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PORTS = ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT")
"""The variables in which platforms pass the port, in the order in which they are read."""


def port_of(environment: Mapping[str, str]) -> int:
    """Return the port on which the platform expects the server; 8080 if it sets none.

    Raises:
        UsageError: the variable does not hold a number.
    """
    name = next((name for name in PORTS if environment.get(name)), None)
    if name is None:
        return 8080
    if not environment[name].isdecimal():
        raise UsageError(f"${name} is '{environment[name]}', which is not a port.", help=f"Set ${name} to a number.")
    return int(environment[name])


def container_root(environment: Mapping[str, str]) -> Path:
    """Return the root of the container's file system: `$EVERLOOP_CONTAINER_ROOT` if it is set, otherwise `/`."""
    return Path(environment.get("EVERLOOP_CONTAINER_ROOT", "/"))


def use_image_keys(work: Path) -> None:
    """Trust the keys in the image, unless `$EVERLOOP_KEYS` names another folder.

    The keys are copied to `work`, because the image's own folder may be read-only.
    """
    if os.environ.get("EVERLOOP_KEYS"):
        return
    image = os.environ.get("EVERLOOP_IMAGE")
    if image and Path(image, "keys").is_dir():
        shutil.copytree(Path(image, "keys"), work / "keys")
    os.environ["EVERLOOP_KEYS"] = str(work / "keys")
