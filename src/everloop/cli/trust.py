"""`everloop trust`: the keys and digests that this machine trusts.

They are stored with the operator's settings, outside of every store and package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.output import AsJson, emit, facts, say, table

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Manage the keys and digests whose code this machine may run."
)


@app.command()
def ls(json: AsJson = False) -> None:
    """List the keys and digests that this machine trusts."""
    from everloop.stores.trust import Keyring

    ring = Keyring()
    found = ring.listing()
    rows = [(entry.kind, entry.name, entry.id) for entry in found]
    empty = "Nothing is trusted yet. This machine's own key is created with its first package."
    emit(found, json, lambda: table(f"Trusted ({ring.folder})", ("kind", "name", "id"), rows, empty=empty))


@app.command()
def add(
    what: Annotated[
        str,
        typer.Argument(
            help="Public key (the line that `everloop trust show` prints, or a file that contains it), or a digest."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the key; for a digest, the reason why it is trusted.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Trust a key, or one digest.

    A key is trusted for everything it signs; a digest (sha256:…) for one package.
    """
    from everloop.errors import UsageError
    from everloop.stores.trust import Keyring

    ring = Keyring()
    if what.startswith("sha256:"):
        ring.trust_digest(what, name or "")
        added = what
    else:
        file = Path(what)
        is_file = file.is_file()
        text = file.read_text(encoding="utf-8", errors="replace") if is_file else what
        key_name = name or (file.stem if is_file else None)
        if key_name is None:
            raise UsageError("A key needs a name.", help="Name its owner, for example: --name alice")
        added = ring.trust(text, key_name)
    entry = next(entry for entry in ring.listing() if entry.id == added)
    emit(entry, json, lambda: say(f"Trusted {entry.kind} {entry.id} ({entry.name or 'no reason given'})."))


@app.command()
def rm(
    what: Annotated[str, typer.Argument(help="Name or id of a key, or a digest.")],
    json: AsJson = False,
) -> None:
    """Stop trusting a key or digest. Models that are loaded keep running; loading them again is refused."""
    from everloop.stores.trust import Keyring

    removed = Keyring().distrust(what)
    emit(removed, json, lambda: say(f"No longer trusted: {removed.kind} {removed.id}."))


@app.command()
def show(
    what: Annotated[
        str | None, typer.Argument(help="Name or id of a key, or a digest. Default: this machine's own key.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show a trusted key or digest, or the public key of this machine.

    Give the public key of this machine to others, so that they can trust packages that are built here.
    """
    from everloop.errors import NotFoundError
    from everloop.stores.trust import MACHINE, Keyring

    ring = Keyring()
    if what is None:
        # Creates the key if there is none yet.
        ring.public_key()
    found = next((entry for entry in ring.listing() if (what or MACHINE) in (entry.name, entry.id)), None)
    if found is None:
        raise NotFoundError(f"'{what}' is not trusted here.", help="See: everloop trust ls")

    def draw() -> None:
        if what is None:
            say(found.public)
        else:
            facts(found.name or found.id, [("kind", found.kind), ("id", found.id), ("public key", found.public)])

    emit(found, json, draw)
