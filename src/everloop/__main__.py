"""`python -m everloop` is the command `everloop`."""

from __future__ import annotations

from everloop.cli import main

if __name__ == "__main__":
    main()
