"""`everloop trust`: whose code this machine runs. Kept with its operator, outside of every store and package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.output import AsJson, emit, facts, say, table

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Whose packages may bring code: keys and digests trusted here."
)


@app.command()
def ls(json: AsJson = False) -> None:
    """List the keys and digests that this machine trusts."""
    from everloop.stores.trust import Keyring

    ring = Keyring()
    found = ring.listing()
    rows = [(entry.kind, entry.name, entry.id) for entry in found]
    empty = "Nothing is trusted yet; the machine's own key is made with its first package."
    emit(found, json, lambda: table(f"Trusted ({ring.folder})", ("kind", "name", "id"), rows, empty=empty))


@app.command()
def add(
    what: Annotated[
        str,
        typer.Argument(
            help="A public key: the line that `everloop trust show` prints, or a file with it. Or a digest."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What to call the key; of a digest, why you trust it.")] = None,
    json: AsJson = False,
) -> None:
    """Trust what a key signs, or one package by its digest (sha256:…) whoever signed it."""
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
        called = name or (file.stem if is_file else None)
        if called is None:
            raise UsageError("What is the key called?", help="Say whose it is: --name alice")
        added = ring.trust(text, called)
    entry = next(entry for entry in ring.listing() if entry.id == added)
    emit(entry, json, lambda: say(f"Trusted: {entry.kind} {entry.id} ({entry.name or 'no reason given'})."))


@app.command()
def rm(
    what: Annotated[str, typer.Argument(help="A key's name or id, or a digest.")],
    json: AsJson = False,
) -> None:
    """Trust it no longer. What runs goes on; what is loaded from now on is refused."""
    from everloop.stores.trust import Keyring

    gone = Keyring().distrust(what)
    emit(gone, json, lambda: say(f"No longer trusted: {gone.kind} {gone.id}."))


@app.command()
def show(
    what: Annotated[
        str | None, typer.Argument(help="A key's name or id, or a digest; default: the machine's own key.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show one entry. Of the machine's own key: the line to give to others, so that they trust what is made here."""
    from everloop.errors import NotFoundError
    from everloop.stores.trust import MACHINE, Keyring

    ring = Keyring()
    if what is None:
        # Makes the key where there is none yet.
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
