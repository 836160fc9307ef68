"""The `everloop` command: all groups in one tree, and what every command shares."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from everloop import __version__
from everloop.cli import (
    data,
    demo,
    endpoints,
    features,
    init,
    loop,
    monitor,
    packages,
    predictions,
    release,
    reproduce,
    runs,
    server,
    serving,
    store,
    trust,
    webhooks,
)
from everloop.cli.output import messages, report
from everloop.errors import EverloopError

# Newer typers bring their own click; this finds the right one's class.
_REFUSED: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


INTERRUPTED = 130


def _empty() -> typer.Typer:
    made = typer.Typer(
        name="everloop",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Keeps machine-learning models alive: data, training, release, serving, watching, retraining.",
    )
    made.callback()(_root)
    return made


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"everloop {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app = _empty()
"""The whole tree."""
app.command()(demo.demo)
app.command()(init.init)
app.command()(loop.run)
app.command()(loop.up)
app.command()(server.server)
app.command()(serving.serve)
app.command()(serving.predict)
app.command()(reproduce.reproduce)
app.command()(store.lineage)
app.command()(store.events)
app.command()(store.verify)
app.command()(store.gc)
app.command()(store.backup)
app.command()(store.restore)
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(packages.app, name="models")
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(monitor.app, name="monitor")
app.add_typer(release.app, name="release")
app.add_typer(predictions.app, name="predictions")
app.add_typer(predictions.labels_app, name="labels")
app.add_typer(trust.app, name="trust")
app.add_typer(server.users, name="users")
app.add_typer(server.tokens, name="tokens")
app.add_typer(webhooks.app, name="webhooks")


def _needed(arguments: Sequence[str]) -> typer.Typer:
    """The tree with flesh only where this command line goes: reading the signatures of all costs 40 ms."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if "_EVERLOOP_COMPLETE" in os.environ:
        return app
    lean = _empty()
    for command in app.registered_commands:
        function = command.callback
        if function is not None:
            lean.command(command.name)(function if function.__name__ == asked else _bare(function))
    for group in app.registered_groups:
        if group.typer_instance is None:
            continue
        if group.name == asked:
            lean.add_typer(group.typer_instance, name=group.name)
        else:
            lean.command(group.name, help=group.typer_instance.info.help)(_bare(run))
    return lean


def _bare(function: Callable[..., Any]) -> Callable[[], None]:
    """A name and a docstring, for the list of commands."""

    def bare() -> None:
        raise EverloopError(f"'{function.__name__}' was not built.")

    bare.__name__, bare.__doc__ = function.__name__, function.__doc__
    return bare


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Nothing but a bug escapes as a traceback."""
    command = typer.main.get_command(_needed(arguments))
    as_json = "--json" in arguments
    try:
        result = command.main(args=list(arguments), prog_name="everloop", standalone_mode=False)
    except EverloopError as error:
        report(error, as_json)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    except _REFUSED as error:
        error.show()
        return int(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stderr.close()
        return 141
    # Some versions of typer raise on Ctrl-C, others return this.
    if result == INTERRUPTED:
        messages().print("Interrupted. What was finished is kept; the same command goes on from there.")
    return result if isinstance(result, int) else 0
