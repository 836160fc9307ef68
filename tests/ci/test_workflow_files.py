"""The files for GitHub Actions and GitLab CI are valid, pinned, and keep rights and secrets away from a change."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from everloop.ci import workflow_text, write_workflow
from everloop.ci.comment import MARKER
from everloop.errors import AlreadyExistsError, NotFoundError, UsageError

GITHUB = workflow_text("github")
GITLAB = workflow_text("gitlab")


def program(name: str) -> str:
    """The path of a program that may be missing, in this environment or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        if name in os.environ.get("EVERLOOP_REQUIRE", "").split(","):
            pytest.fail(f"{name} is required here, and is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def jobs() -> dict:
    return yaml.safe_load(GITHUB)["jobs"]


def test_every_action_is_pinned_by_a_full_commit_with_its_version():
    uses = re.findall(r"uses: (.*)", GITHUB)
    assert len(uses) >= 9
    for line in uses:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    # One version of each action.
    assert len({line.partition("@")[0] for line in uses}) == len(set(uses))


def test_a_pull_request_runs_without_rights_or_secrets():
    assert "pull_request_target" not in GITHUB
    assert yaml.safe_load(GITHUB)["permissions"] == {"contents": "read"}
    check, comment = jobs()["check"], jobs()["comment"]
    assert check["permissions"] == {"contents": "read"}
    assert comment["permissions"] == {"pull-requests": "write"}
    # The job that may write neither checks out nor runs the code of the change.
    assert not any("checkout" in step.get("uses", "") or "run" in step for step in comment["steps"])
    assert "head.repo.full_name == github.repository" in comment["if"]
    live = [line for line in GITHUB.splitlines() if not line.strip().startswith("#")]
    assert not any("secrets." in line for line in live)
    for job in jobs().values():
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


def test_no_expression_is_put_into_a_script():
    for job in jobs().values():
        for step in job["steps"]:
            assert "${{" not in step.get("run", "")
            assert "${{" not in str(step.get("with", {}).get("script", ""))
    for line in GITLAB.splitlines():
        # Titles and names of branches never reach a shell.
        assert not re.search(r"CI_(MERGE_REQUEST_TITLE|COMMIT_(TITLE|MESSAGE|REF_NAME)|MERGE_REQUEST_SOURCE)", line)


def test_the_comment_is_found_by_its_marker():
    assert f"const marker = '{MARKER}'" in GITHUB


def test_gitlab_has_a_note_job_without_the_code_of_the_change():
    content = yaml.safe_load(GITLAB)
    note = content["everloop-note"]
    assert note["variables"]["GIT_STRATEGY"] == "none"
    assert "EVERLOOP_GITLAB_TOKEN" in note["rules"][0]["if"]
    assert content["everloop-check"]["artifacts"]["reports"]["junit"] == "everloop-ci/junit.xml"
    assert content["everloop-release"]["resource_group"]
    kinds = set(content) - {"stages", "variables"}
    assert {content[name]["stage"] for name in kinds if not name.startswith(".")} == set(content["stages"])


@pytest.mark.slow
@pytest.mark.parametrize(("schema", "text"), [("github-workflows", GITHUB), ("gitlab-ci", GITLAB)])
def test_the_published_schemas_accept_the_files(tmp_path, schema, text):
    checker = program("check-jsonschema")
    (tmp_path / "file.yml").write_text(text)
    command = [checker, "--builtin-schema", f"vendor.{schema}", str(tmp_path / "file.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_actionlint_finds_nothing(tmp_path):
    checker = program("actionlint")
    (tmp_path / "everloop.yml").write_text(GITHUB)
    done = subprocess.run([checker, str(tmp_path / "everloop.yml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("host", ["github", "gitlab"])
def test_a_file_of_your_own_is_not_replaced_without_force(tmp_path, host):
    path = write_workflow(host, tmp_path)
    assert path.read_text() == workflow_text(host)
    assert write_workflow(host, tmp_path) == path
    path.write_text("name: mine\n")
    with pytest.raises(AlreadyExistsError, match="--force"):
        write_workflow(host, tmp_path)
    assert path.read_text() == "name: mine\n"
    write_workflow(host, tmp_path, force=True)
    assert path.read_text() == workflow_text(host)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"'jenkins'.*github, gitlab"):
        write_workflow("jenkins", tmp_path)
    with pytest.raises(NotFoundError, match="nowhere"):
        write_workflow("github", tmp_path / "nowhere")
    (tmp_path / ".github").write_text("a file")
    with pytest.raises(UsageError, match="Cannot write"):
        write_workflow("github", tmp_path)


def test_a_new_project_gets_the_same_file(tmp_path, monkeypatch, capsys):
    from everloop.cli.app import run

    monkeypatch.chdir(tmp_path)
    assert run(["init", "shop", "--json"]) == 0
    assert ".github/workflows/everloop.yml" in json.loads(capsys.readouterr().out)["written"]
    assert Path("shop/.github/workflows/everloop.yml").read_text() == GITHUB
    assert run(["ci", "init", "gitlab", "--dir", "shop"]) == 0
    assert Path("shop/.gitlab-ci.yml").read_text() == GITLAB
