"""The command line: one thin file of commands per room."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Entry point of the `everloop` command; exits with the error's own code."""
    # Imports make many objects and almost no garbage: looking for it meanwhile is a tenth of the start.
    gc.disable()
    from everloop.cli.app import run

    gc.freeze()
    gc.enable()
    sys.exit(run(sys.argv[1:]))
