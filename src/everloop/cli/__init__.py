"""The command line: one thin file of commands per room."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `everloop` command; exits with the error's own code."""
    from everloop.cli.app import run

    sys.exit(run(sys.argv[1:]))
