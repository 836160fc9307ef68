"""The `everloop` command: the tree of all commands and groups, and how a command line is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from everloop import __version__
from everloop.cli import (
    ci,
    compile as compilation,
    data,
    demo,
    endpoints,
    features,
    init,
    loop,
    monitor,
    packages,
    plan,
    predictions,
    release,
    replay,
    reproduce,
    runs,
    server,
    serving,
    status,
    store,
    triggers,
    trust,
    webhooks,
)
from everloop.cli.output import messages, report
from everloop.errors import EverloopError, UsageError

# Newer versions of typer bundle click, so the class is found through typer instead of being imported from click.
_ClickException: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


INTERRUPTED = 130
CLOSED_PIPE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def _empty_tree() -> typer.Typer:
    tree = typer.Typer(
        name="everloop",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Run the life cycle of machine-learning models, from data and training to monitoring and retraining.",
    )
    tree.callback()(_root)
    return tree


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"everloop {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app = _empty_tree()
"""The complete tree of commands."""
app.command()(demo.demo)
app.command()(init.init)
app.command()(loop.run)
app.command()(loop.up)
app.command()(triggers.trigger)
app.command()(triggers.triggers)
app.command()(status.status)
app.command()(status.runner)
app.command()(server.server)
app.command()(serving.serve)
app.command()(serving.predict)
app.command()(replay.replay)
app.command()(reproduce.reproduce)
app.command()(plan.plan)
app.command()(plan.apply)
app.command()(store.lineage)
app.command()(store.events)
app.command()(store.verify)
app.command()(store.gc)
app.command()(store.backup)
app.command()(store.restore)
app.add_typer(store.app, name="store")
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(features.app, name="features")
app.add_typer(packages.app, name="models")
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(monitor.app, name="monitor")
app.add_typer(release.app, name="release")
app.add_typer(release.app, name="releases", hidden=True)
app.add_typer(ci.app, name="ci")
app.add_typer(predictions.app, name="predictions")
app.add_typer(predictions.labels_app, name="labels")
app.add_typer(trust.app, name="trust")
app.add_typer(compilation.app, name="compile")
app.add_typer(server.users, name="users")
app.add_typer(server.tokens, name="tokens")
app.add_typer(webhooks.app, name="webhooks")


def _pruned_tree(arguments: Sequence[str]) -> typer.Typer:
    """Build the tree for one command line: the named command or group in full, the others by name and help only.

    Reading the signatures of all commands would take 40 ms.
    """
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    if "_EVERLOOP_COMPLETE" in os.environ:
        return app
    tree = _empty_tree()
    for command in app.registered_commands:
        function = command.callback
        if function is not None:
            tree.command(command.name)(function if function.__name__ == name else _stub(function))
    for group in app.registered_groups:
        if group.typer_instance is None:
            continue
        hidden = group.hidden is True
        if group.name == name:
            tree.add_typer(group.typer_instance, name=group.name, hidden=hidden)
        else:
            tree.command(group.name, help=group.typer_instance.info.help, hidden=hidden)(_stub(run))
    return tree


def _stub(function: Callable[..., Any]) -> Callable[[], None]:
    """Return a function with the same name and docstring, for the list of commands."""

    def stub() -> None:
        raise EverloopError(f"'{function.__name__}' was not built.")

    stub.__name__, stub.__doc__ = function.__name__, function.__doc__
    return stub


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Only a bug escapes as a traceback."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_output()
    except SystemExit as end:
        # Typer ends the process if the reader of the output has closed the pipe.
        if isinstance(end.__context__, BrokenPipeError):
            return _close_output()
        raise
    return code


def _close_output() -> int:
    """Discard the rest of the output, because its reader has closed the pipe, as `| head` does."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_PIPE


def _run(arguments: Sequence[str]) -> int:
    tree = typer.main.get_command(_pruned_tree(arguments))
    as_json = "--json" in arguments
    try:
        result = tree.main(args=list(arguments), prog_name="everloop", standalone_mode=False)
    except EverloopError as error:
        report(error, as_json)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        result = INTERRUPTED
    except _ClickException as error:
        if as_json:
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "everloop"
            report(UsageError(error.format_message(), help=f"See: {command} --help"), as_json)
        else:
            error.show()
        return int(error.exit_code)
    # Some versions of typer raise on Ctrl-C, others return this.
    if result == INTERRUPTED:
        messages().print("Interrupted. Finished work is kept: repeat the command to continue.")
    return result if isinstance(result, int) else 0
