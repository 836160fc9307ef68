"""Generate docs/commands.md from the help of the commands. A test fails if a command is missing from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INTRODUCTION = """# Commands

`make docs` generates this page from the help of the commands. Every command but `everloop up` takes `--json`. An error
message says what happened, what exists instead, and which command helps. Each kind of error has its own exit code (see
the tree at the top of `src/everloop/errors.py`); 11 means that a gate rejects the candidate. Results go to standard
output, everything else to standard error. For completion in your shell, run `everloop --install-completion`.
"""


def help_of(*path: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERMINAL_WIDTH": "100"}
    command = [sys.executable, "-c", "from everloop.cli import main; main()", *path, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


def commands_in(text: str) -> list[str]:
    lines = text.partition("Commands:\n")[2].splitlines()
    return [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")]


def main() -> None:
    parts = [INTRODUCTION]
    for name in commands_in(help_of()):
        text = help_of(name)
        inner = commands_in(text)
        for path in [(name, sub) for sub in inner] or [(name,)]:
            parts.append(f"## `everloop {' '.join(path)}`\n\n```text\n{help_of(*path) if inner else text}\n```\n")
    (HERE / "commands.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
