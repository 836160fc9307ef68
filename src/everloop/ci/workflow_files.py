"""The files that make GitHub Actions and GitLab CI check every change and release from the main branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from everloop.errors import AlreadyExistsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

Host = Literal["github", "gitlab"]
PATHS: dict[Host, str] = {"github": ".github/workflows/everloop.yml", "gitlab": ".gitlab-ci.yml"}
"""Where each host looks for the file, relative to the root of the repository."""


def workflow_text(host: str) -> str:
    """Return the content of the file for a host.

    Raises:
        UsageError: the host is not known.
    """
    from importlib.resources import files

    return (files("everloop.ci") / "templates" / f"{_checked(host)}.yml").read_text(encoding="utf-8")


def write_workflow(host: str, folder: Path, *, force: bool = False) -> Path:
    """Write the file for a host and return its path.

    Args:
        folder: root of the repository.
        force: replace a file that exists and differs.

    Raises:
        UsageError: the host is not known, or the file cannot be written.
        NotFoundError: the folder does not exist.
        AlreadyExistsError: another file of this name exists, and `force` is off.
    """
    path = folder / PATHS[_checked(host)]
    text = workflow_text(host)
    if not folder.is_dir():
        raise NotFoundError(f"The folder '{folder}' does not exist.", help="Name an existing folder with --dir.")
    try:
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
            return path
        if path.exists() and not force:
            raise AlreadyExistsError(
                f"'{path}' exists already and differs from what would be written.",
                help="Replace it with: --force. Your own jobs in it would be lost.",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"Cannot write '{path}': {error.strerror}.", help="Choose another folder with --dir."
        ) from error
    return path


def _checked(host: str) -> Host:
    for known in get_args(Host):
        if host == known:
            found: Host = known
            return found
    raise UsageError(f"'{host}' is not a known CI system.", help=f"Choose one of: {', '.join(get_args(Host))}")
