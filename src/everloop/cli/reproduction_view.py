"""Show exactly what `everloop reproduce` would execute, with terminal control characters escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from everloop.stores.printable import printable, shell_word

if TYPE_CHECKING:
    from rich.console import Console

    from everloop.tracking.reproduction.execution_plan import ReproductionPlan

_SIGNS = {"+": "green", "-": "red", "@": "cyan"}
_PROVENANCE = {
    "here": "started on this machine",
    "signed": "started elsewhere, signed by a key that this machine trusts",
    "foreign": "started elsewhere, and not signed by a key that this machine trusts",
}


def draw_plan(console: Console, plan: ReproductionPlan, *, full: bool) -> None:
    """Print a plan.

    Args:
        full: include the patch, line by line, and every package.
    """

    def line(label: str, value: str, style: str = "") -> None:
        console.print(Text.assemble((f"  {label:<13}", "dim"), (printable(value, breaks=False), style)), soft_wrap=True)

    console.print(Text(f"To reproduce the run '{printable(plan.name, breaks=False)}', this is executed:", "bold"))
    line("run", plan.run)
    trusted = _PROVENANCE[plan.provenance.kind] + (f" ({plan.provenance.key})" if plan.provenance.key else "")
    line("comes from", trusted, "red" if plan.provenance.kind == "foreign" else "")
    line("digest", plan.provenance.digest)
    if plan.kind == "script":
        line("command", "one argument per line, quoted as for a shell")
        for word in plan.argv:
            console.print(Text(f"    {shell_word(word)}"), soft_wrap=True)
        line("folder", plan.folder)
    else:
        where = f"in {plan.folder}" if plan.folder else "in a folder that does not exist here (name it with --dir)"
        line("loop", f"loop.py {where}, or from the commit if that file has changed")
        for name, value in plan.params.items():
            line("parameter", f"{name} = {value!r}")
    line("repository", plan.repository or "none: the code that is in the folder now")
    for label, text in (("commit", plan.commit), ("code", plan.code), ("changes", plan.changes)):
        if text:
            line(label, text)
    for file in plan.files:
        line("  changes", f"{file.path}  +{file.added} -{file.removed}")
    for path in plan.left_out:
        line("  left out", f"{path}: may contain secrets, so it was not stored")
    line("Python", plan.python)
    packages = "those of this environment" if not plan.packages else f"{len(plan.packages)} in a new environment"
    line("packages", packages)
    if plan.packages:
        listed = plan.packages if full else plan.packages[:10]
        for package in listed:
            console.print(Text(f"    {printable(package, breaks=False)}"), soft_wrap=True)
        if len(listed) < len(plan.packages):
            console.print(Text(f"    and {len(plan.packages) - len(listed)} more: see --show"))
        line("index", plan.index)
    for name, value in plan.variables.items():
        line("variable", f"{name}={value}")
    for name in plan.secrets:
        line("secret", f"{name}: was masked, so it must be given again: --with {name}=VALUE")
    if full and plan.patch:
        line("patch", "applied to the commit, complete")
        for text in plan.patch.split("\n"):
            console.print(Text(f"    {printable(text, breaks=False)}", _SIGNS.get(text[:1], "")), soft_wrap=True)


def plain_plan(plan: ReproductionPlan) -> dict[str, Any]:
    """Return a plan as plain values for JSON."""
    return {
        "run": plan.run,
        "name": plan.name,
        "kind": plan.kind,
        "provenance": plan.provenance,
        "argv": plan.argv,
        "folder": plan.folder,
        "repository": plan.repository,
        "commit": plan.commit,
        "code": plan.code,
        "changes": plan.changes,
        "patch": plan.patch.encode("utf-8", "backslashreplace").decode(),
        "files": plan.files,
        "left_out": plan.left_out,
        "python": plan.python,
        "packages": plan.packages,
        "index": plan.index,
        "variables": plan.variables,
        "params": plan.params,
        "secrets": plan.secrets,
    }
