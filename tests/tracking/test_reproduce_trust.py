"""A run that was not started on this machine is not executed without trust; its plan is only shown."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from everloop.errors import EverloopError, NotFoundError, TrustError, UsageError
from everloop.records import Run, Source
from everloop.stores import Journal, Store, open_store
from everloop.stores.journals import HEADER, split_frames
from everloop.stores.records.record_codec import decode, encode
from everloop.stores.trust import Keyring
from everloop.tracking import copy_run, start_run
from everloop.tracking.journal import journal_frames
from everloop.tracking.journal.ingest import ingest_frames
from everloop.tracking.journal.run_folding import fold
from everloop.tracking.reproduction.checkout import check_out
from everloop.tracking.reproduction.environments import pinned_packages
from everloop.tracking.reproduction.execution_plan import plan_reproduction
from everloop.tracking.reproduction.run_trust import is_from_here, provenance_of
from everloop.tracking.reproduction.script_reproduction import reproduce_script
from everloop.tracking.run_archive import export_runs, import_runs

SCRIPT = """
import os, sys
from everloop.tracking import start_run
with start_run("train", params={"words": " ".join(sys.argv[1:])}) as run:
    run.log(loss=1.0)
"""


@pytest.fixture(autouse=True)
def _own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "project"
    made.mkdir()
    (made / "train.py").write_text(SCRIPT)
    return made


def run_script(folder: Path, store: Store, *words: str) -> Run:
    environment = {**os.environ, "EVERLOOP_STORE": str(store.home)}
    subprocess.run([sys.executable, "train.py", *words], cwd=folder, env=environment, check=True, capture_output=True)
    (run,) = store.records.find(Run, order="-id", limit=1)
    return run


def evil(store: Store, mark: Path, **fields: object) -> Run:
    """A record as a stranger may write it: it says that it was started here, and that it does nothing."""
    source = Source(
        launch=("python", "-c", f"open({str(mark)!r}, 'w')"),
        folder=str(mark.parent),
        host=os.uname().nodename,
        seal="0" * 64,
    )
    return store.new(
        Run, **{"name": "train", "started_at": store.now(), "source": source, "state": "finished", **fields}
    )


def test_what_was_started_here_is_known_and_whoever_changes_it_makes_it_foreign(folder: Path, store: Store) -> None:
    run = run_script(folder, store, "a")
    assert provenance_of(run).kind == "here"
    changes = {
        "launch": ("python", "train.py", "b"),
        "folder": "/etc",
        "git_commit": "a" * 40,
        "git_root": "/etc",
        "changes": "sha256:" + "0" * 64,
        "packages": {**run.source.packages, "evil": "1.0"},
        "python": "3.8.0",
        "code": "code:other",
    }
    for name, value in changes.items():
        changed = replace(run, source=replace(run.source, **{name: value}))
        assert provenance_of(changed).kind == "foreign", name
    assert provenance_of(replace(run, id=store.new(Run, name="x", started_at=store.now()).id)).kind == "foreign"
    assert provenance_of(replace(run, loop="shop")).kind == "foreign"
    assert provenance_of(replace(run, source=replace(run.source, seal=None))).kind == "foreign"
    for seal in ("", "é", "0" * 64, "\ud800", run.source.seal[:-1] + "x"):  # type: ignore[index]
        assert provenance_of(replace(run, source=replace(run.source, seal=seal))).kind == "foreign"
    # What others may add to a run does not matter: it is not executed.
    assert provenance_of(replace(run, tags={"a": "b"}, metrics={"x": 1.0}, archived_at=store.now())).kind == "here"
    assert provenance_of(copy_run(store, run.id).run).kind == "here"


def test_the_seal_is_new_when_a_run_learns_more_of_itself(store: Store) -> None:
    with start_run("train", store=store) as run:
        run.set_code("code:abc")
        import colorsys  # noqa: F401 - something that was not imported before

        assert is_from_here(store.records.get(Run, run.id))
        run.params["later"] = 1
    assert is_from_here(run.record)
    with start_run("again", store=store, resume=run.id) as resumed:
        resumed.set_code("code:def")
    assert is_from_here(run.record)
    assert run.record.source.code == "code:def"


def test_resuming_a_foreign_run_does_not_make_it_ours(store: Store, tmp_path: Path) -> None:
    foreign = evil(store, tmp_path / "mark")
    store.records.put(foreign)
    with start_run("again", store=store, resume=foreign.id) as run:
        run.set_code("code:x")
    assert not is_from_here(run.record)
    assert provenance_of(run.record).kind == "foreign"
    assert provenance_of(copy_run(store, foreign.id).run).kind == "foreign"


def test_without_a_key_nothing_is_from_here_and_runs_go_on(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "file" / "keys"))
    with start_run("train", store=store) as run:
        run.log(x=1.0)
    assert run.record.state == "finished"
    assert run.record.source.seal is None
    assert provenance_of(run.record).kind == "foreign"


def test_the_key_is_the_owners_alone(store: Store, tmp_path: Path) -> None:
    with start_run("train", store=store):
        pass
    assert (tmp_path / "keys" / "machine.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert Keyring().sign("sha256:" + "0" * 64)["key"] in Keyring().trusted()


def arrives_in_the_store(store: Store, run: Run, tmp_path: Path) -> None:
    store.records.put(run)


def arrives_at_a_server(store: Store, run: Run, tmp_path: Path) -> None:
    with Journal.create(tmp_path / "theirs", f"run-{run.id}") as journal:
        journal.append(journal_frames.encode_start(run))
        journal.append(journal_frames.encode_provenance({"numpy": "1.0"}, None, run.source.seal))
    body = journal.path.read_bytes()[len(HEADER) :]
    assert list(split_frames(body))
    ingest_frames(store, journal.path.stem, 0, body)


def arrives_as_a_journal(store: Store, run: Run, tmp_path: Path) -> None:
    with Journal.create(store.journals, f"run-{run.id}") as journal:
        journal.append(journal_frames.encode_start(run))
        journal.append(journal_frames.encode_end("finished", store.now(), 1.0, None))
    fold(store)


def arrives_in_an_archive(store: Store, run: Run, tmp_path: Path) -> None:
    with open_store(tmp_path / "theirs") as theirs:
        theirs.records.put(run)
        path = export_runs(theirs, [run.id], tmp_path / "runs.zip").path
    import_runs(store, path)


WAYS = [arrives_in_the_store, arrives_at_a_server, arrives_as_a_journal, arrives_in_an_archive]


@pytest.mark.parametrize("arrives", WAYS)
def test_a_foreign_run_is_not_executed(arrives: object, store: Store, folder: Path, tmp_path: Path) -> None:
    ours = run_script(folder, store)  # there is a key, and a seal that can be copied
    mark = tmp_path / "mark"
    for number, seal in enumerate((None, "0" * 64, ours.source.seal)):
        run = evil(store, mark)
        run = replace(run, source=replace(run.source, seal=seal))
        arrives(store, run, tmp_path / str(number))  # type: ignore[operator]
        there = store.records.get(Run, run.id)
        assert provenance_of(there).kind == "foreign"
        with pytest.raises(TrustError, match=r"data from elsewhere.*Nothing was executed"):
            reproduce_script(store, there, tmp_path / f"scratch{number}", reuse_environment=True)
        assert not mark.exists()
        assert not (tmp_path / f"scratch{number}").exists()  # nothing was even prepared


@pytest.mark.slow
def test_trust_executes_exactly_what_was_shown(store: Store, folder: Path, tmp_path: Path) -> None:
    odd = ["--name", "two words", "new\nline", "esc\x1b[2K", "'\"", "$(touch x)", "\u202egpj"]
    run = run_script(folder, store, *odd)
    foreign = replace(run, source=replace(run.source, seal=None))
    shown = []
    with pytest.raises(TrustError):
        reproduce_script(store, foreign, tmp_path / "no", listener=shown.append)
    assert not shown
    done = reproduce_script(store, foreign, tmp_path / "scratch", trust=True, listener=shown.append)
    assert done.identical
    (plan,) = shown
    assert plan.argv == (sys.executable, "train.py", *odd)
    assert plan.folder == str(folder)
    assert plan.argv == plan_reproduction(store, foreign).argv
    with open_store(tmp_path / "scratch" / "home") as made:
        (again,) = made.records.find(Run)
        assert again.params["words"] == " ".join(odd)


def test_there_is_one_record_of_the_command(store: Store, tmp_path: Path) -> None:
    # An older store, or a stranger, may have two: only the one that is run is read.
    run = evil(store, tmp_path / "mark")
    body = msgspec.json.decode(encode(run))
    assert "command" not in body["source"]
    body["source"]["command"] = ["echo", "harmless"]
    read = decode(Run, msgspec.json.encode(body).decode())
    assert read.source.command == read.source.launch == run.source.launch
    assert "harmless" not in repr(plan_reproduction(store, read))


@pytest.mark.slow
def test_a_digest_that_is_trusted_is_trusted_for_this_run_only(store: Store, folder: Path, tmp_path: Path) -> None:
    run = run_script(folder, store)
    foreign = replace(run, source=replace(run.source, seal=None))
    Keyring().trust_digest(provenance_of(foreign).digest, "read by me")
    assert provenance_of(foreign).kind == "signed"
    assert reproduce_script(store, foreign, tmp_path / "scratch").identical
    other = replace(foreign, source=replace(foreign.source, launch=("python", "-c", "print()")))
    assert provenance_of(other).kind == "foreign"


@pytest.mark.slow
def test_an_export_is_signed_for_those_who_trust_the_machine(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_script(folder, store)
    foreign = evil(store, tmp_path / "mark")
    store.records.put(foreign)
    public = Keyring().public_key()
    path = export_runs(store, None, tmp_path / "runs.zip").path
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "other"))
    with open_store(tmp_path / "there") as there:
        import_runs(there, path)
        here, stranger = there.records.get(Run, run.id), there.records.get(Run, foreign.id)
        assert here.source.seal is None
        assert provenance_of(here).kind == "foreign"
        Keyring().trust(public, "colleague")
        found = provenance_of(here)
        assert (found.kind, found.key) == ("signed", "colleague")
        assert provenance_of(stranger).kind == "foreign"
        assert provenance_of(replace(here, source=replace(here.source, launch=("x", "y")))).kind == "foreign"
        assert reproduce_script(there, here, tmp_path / "scratch").identical
        Keyring().distrust("colleague")
        assert provenance_of(here).kind == "foreign"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("--index-url=http://evil", "1"),
        ("-e", "."),
        ("evil @ http://evil/x.whl", "1"),
        ("../evil", "1"),
        ("numpy", "1.0 --index-url http://evil"),
        ("numpy", "http://evil"),
        ("numpy\n-e .", "1"),
        ("-r", "requirements.txt"),
        ("numpy", ""),
        ("git+https://evil/x", "1"),
    ],
)
def test_packages_are_names_with_versions_and_nothing_else(name: str, version: str) -> None:
    with pytest.raises(UsageError, match="which is not valid"):
        pinned_packages(Source(packages={name: version}))


def test_usual_packages_are_taken() -> None:
    packages = {"scikit-learn": "1.5.0", "torch": "2.13.0+cpu", "zope.interface": "6.0.post1", "a": "1!2.0rc1"}
    assert pinned_packages(Source(packages=packages)) == [f"{name}=={version}" for name, version in packages.items()]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("repository")
    (made / "train.py").write_text(SCRIPT)
    git(made, "init", "-q")
    git(made, "add", ".")
    git(made, "commit", "-qm", "first")
    return made


def in_git(store: Store, repository: Path) -> Run:
    run = evil(store, repository / "mark")
    commit = git(repository, "rev-parse", "HEAD")
    return replace(run, source=replace(run.source, git_commit=commit, git_root=str(repository)))


def with_patch(store: Store, run: Run, patch: str) -> Run:
    return replace(run, source=replace(run.source, changes=store.objects.add(patch.encode())))


PATCHES = {
    "outside": "diff --git a/x b/../../evil\n--- a/x\n+++ b/../../evil\n@@ -0,0 +1 @@\n+evil\n",
    "absolute": "diff --git a/x b/x\n--- a/x\n+++ /tmp/evil\n@@ -0,0 +1 @@\n+evil\n",
    "git": "diff --git a/.git/config b/.git/config\n--- a/.git/config\n+++ b/.git/config\n@@ -0,0 +1 @@\n+evil\n",
    "case": "diff --git a/.GIT/hooks/x b/.GIT/hooks/x\nnew file mode 100755\n--- /dev/null\n+++ b/.GIT/hooks/x\n"
    "@@ -0,0 +1 @@\n+evil\n",
    "deep": "diff --git a/a/.git/config b/a/.git/config\nnew file mode 100644\n--- /dev/null\n+++ b/a/.git/config\n"
    "@@ -0,0 +1 @@\n+evil\n",
    "link": "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n+/etc\n",
    "submodule": "diff --git a/sub b/sub\nnew file mode 160000\n--- /dev/null\n+++ b/sub\n@@ -0,0 +1 @@\n"
    "+Subproject commit " + "0" * 40 + "\n",
    "renamed": "diff --git a/train.py b/../out\nsimilarity index 100%\nrename from train.py\nrename to ../out\n",
    "quoted": 'diff --git "a/x" "b/\\056\\056/evil"\n--- /dev/null\n+++ "b/\\056\\056/evil"\n@@ -0,0 +1 @@\n+evil\n',
}


@pytest.mark.parametrize("name", PATCHES)
def test_patches_stay_within_the_repository(name: str, store: Store, repository: Path, tmp_path: Path) -> None:
    run = with_patch(store, in_git(store, repository), PATCHES[name])
    with pytest.raises(UsageError, match="not applied"):
        plan_reproduction(store, run)
    with pytest.raises(UsageError, match="not applied"):
        reproduce_script(store, run, tmp_path / "scratch", trust=True)
    with pytest.raises(UsageError, match="not applied"):
        check_out(store, run.source, tmp_path / "out")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "commit", ["--upload-pack=touch evil", "-x", "HEAD", "main", "a" * 39, "A" * 40, "", "a" * 40 + "\n", "HEAD@{1}"]
)
def test_a_commit_is_a_digest(commit: str, store: Store, repository: Path, tmp_path: Path) -> None:
    run = in_git(store, repository)
    run = replace(run, source=replace(run.source, git_commit=commit))
    with pytest.raises(UsageError, match="is not a full commit id"):
        reproduce_script(store, run, tmp_path / "scratch", trust=True)


@pytest.mark.parametrize(
    "root", ["ext::sh -c touch% evil", "host:path", "https://evil/x", "-x", "rel", "", "/a::b", "/a\nb"]
)
def test_a_repository_is_a_folder_of_this_machine(
    root: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if root and "/" not in root:
        Path(root).mkdir()
    run = evil(store, tmp_path / "mark")
    run = replace(run, source=replace(run.source, git_commit="a" * 40, git_root=root))
    with pytest.raises(NotFoundError):
        reproduce_script(store, run, tmp_path / "scratch", trust=True, reuse_environment=True)
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_a_checkout_executes_nothing(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks, filters, submodules and file system monitors of the repository, and of the user, stay silent."""
    mark, script = tmp_path / "mark", tmp_path / "touch.sh"
    script.write_text(f"#!/bin/sh\ntouch '{mark}'\ncat\n")
    script.chmod(0o755)
    git(folder, "init", "-q")
    (folder / ".gitattributes").write_text("*.py filter=evil diff=evil\n")
    (folder / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch x"\n')
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    commit = git(folder, "rev-parse", "HEAD")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{commit},x")
    git(folder, "commit", "-qm", "second")
    run = run_script(folder, store)
    for name in ("post-checkout", "pre-commit", "reference-transaction"):
        (folder / ".git" / "hooks" / name).write_text(script.read_text())
        (folder / ".git" / "hooks" / name).chmod(0o755)
    home = tmp_path / "user"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f'[filter "evil"]\n\tsmudge = {script}\n\tclean = {script}\n[core]\n\thooksPath = {folder}/.git/hooks\n'
        f"\tfsmonitor = {script}\n[submodule]\n\trecurse = true\n[init]\n\ttemplateDir = {folder}/.git\n"
    )
    (folder / "link").symlink_to("train.py")
    git(folder, "add", "link")
    run = run_script(folder, store)
    assert run.source.changes is not None
    mark.unlink(missing_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(script))
    with pytest.raises(UsageError, match="something other than a file"):
        check_out(store, run.source, tmp_path / "refused")
    made = check_out(store, run.source, tmp_path / "code", links=True)
    assert (made / "train.py").read_text() == SCRIPT
    assert not mark.exists()
    assert not list((tmp_path / "code" / ".git").glob("hooks/*"))


def test_a_working_folder_that_is_a_link_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    git(folder, "init", "-q")
    (folder / "sub").symlink_to("/etc")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    run = run_script(folder, store)
    for inside in ("sub", "../../etc"):
        moved = replace(run, source=replace(run.source, folder=f"{run.source.git_root}/{inside}"))
        if inside == "sub":
            with pytest.raises(UsageError, match="a link to a folder outside"):
                check_out(store, moved.source, tmp_path / "code")
        else:
            assert check_out(store, moved.source, tmp_path / "code2") == tmp_path / "code2"


def test_python_is_this_machines(store: Store, tmp_path: Path) -> None:
    run = evil(store, tmp_path / "mark")
    source = replace(run.source, launch=(str(tmp_path / "evil"), "-c", "x"), python="/opt/evil/python")
    plan = plan_reproduction(store, replace(run, source=source))
    assert plan.argv == (sys.executable, "-c", "x")
    assert str(tmp_path / "evil") not in plan.argv


def test_every_refusal_is_quick_and_none_is_a_traceback(store: Store, tmp_path: Path) -> None:
    huge = evil(store, tmp_path / "mark")
    for launch in (("python", "x" * 200_000), ("python", *["a"] * 50_000), ("python",), (), ("python", "-")):
        run = replace(huge, source=replace(huge.source, launch=launch))
        with pytest.raises(EverloopError):
            reproduce_script(store, run, tmp_path / "scratch")
    gone = replace(
        huge, source=replace(huge.source, git_commit="a" * 40, git_root=str(tmp_path), changes="sha256:" + "1" * 64)
    )
    with pytest.raises(NotFoundError, match="not in this store"):
        plan_reproduction(store, gone)


LOOP = """
import everloop as el

open({mark!r}, "w")

@el.step
def orders():
    return 1

loop = el.Loop("shop")
"""


def test_the_loop_of_a_foreign_turn_is_not_loaded(store: Store, tmp_path: Path) -> None:
    from everloop.loop.loop_reproduction import reproduce_loop_run
    from everloop.records import StepRun

    mark, folder = tmp_path / "mark", tmp_path / "theirs"
    folder.mkdir()
    (folder / "loop.py").write_text(LOOP.format(mark=str(mark)))
    run = evil(store, mark, loop="shop")
    run = replace(run, source=replace(run.source, folder=str(folder)))
    step = store.new(StepRun, run=run.id, name="orders", code="x", status="ran", reason="", fingerprint="f")
    store.records.put(run, step)
    with pytest.raises(TrustError, match="executes its loop with your rights"):
        reproduce_loop_run(store, run, tmp_path / "scratch")
    assert not mark.exists()
