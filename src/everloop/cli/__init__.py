"""The command line: one thin file of commands for each room of the package."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the `everloop` command, and exit with its exit code."""
    # Imports create many objects and almost no garbage. Collecting during the imports would take a tenth of the start.
    gc.disable()
    from everloop.cli.app import run

    gc.freeze()
    gc.enable()
    sys.exit(run(sys.argv[1:]))
