"""The files for systemd and compose: valid for their programs, complete, and without secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from everloop.errors import AlreadyExistsError, UsageError
from everloop.server.service_files import compose_file, systemd_unit, write_service_file

NAMES = ["wine", "my wine", "50% off", "a$HOME", 'quo"te', "back\\slash", "semi;colon", "größe", "it's"]


@pytest.fixture(params=NAMES)
def folder(tmp_path, request):
    made = tmp_path / request.param
    made.mkdir()
    (made / "loop.py").touch()
    return made


def fields(unit):
    return dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)


def words(command):
    """The words of a command line as systemd reads them: double quotes, backslashes, `%%` and `$$`."""
    found, word, quoted, escaped = [], None, False, False
    for sign in command:
        if escaped:
            word, escaped = (word or "") + sign, False
        elif sign == "\\":
            escaped = True
        elif sign == '"':
            quoted, word = not quoted, word or ""
        elif sign == " " and not quoted:
            found += [] if word is None else [word]
            word = None
        else:
            word = (word or "") + sign
    found += [] if word is None else [word]
    return [one.replace("%%", "%").replace("$$", "$") for one in found]


def test_the_unit_names_the_project_exactly(folder):
    unit = fields(systemd_unit(folder, ["--port", "8200"]))
    command = words(unit["ExecStart"])
    assert command[-5:] == ["up", "--dir", str(folder), "--port", "8200"]
    assert Path(command[0]).is_absolute()
    assert unit["WorkingDirectory"].replace("%%", "%") == str(folder)
    assert unit["KillMode"] == "mixed"
    assert unit["Restart"] == "always"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(folder, tmp_path):
    path = tmp_path / "everloop.service"
    path.write_text(systemd_unit(folder))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(path)], capture_output=True, text=True, check=False
    )
    problems = [line for line in (done.stdout + done.stderr).splitlines() if "everloop.service" in line]
    assert problems == []


def test_a_path_with_a_line_break_is_refused(tmp_path):
    made = tmp_path / "a\nExecStartPost=evil"
    made.mkdir()
    with pytest.raises(UsageError, match="cannot contain"):
        systemd_unit(made)


def test_the_compose_file_is_valid_and_checks_health(folder, tmp_path):
    (folder / "requirements.txt").touch()
    text = compose_file(folder, tmp_path / "deploy" / "compose.yaml", port=8200)
    content = yaml.safe_load(text)
    assert set(content["services"]) == {"up", "runner"}
    assert content["services"]["up"]["ports"] == ["127.0.0.1:8200:8100"]
    for service in content["services"].values():
        context = service["build"]["context"].replace("$$", "$")
        assert Path(os.path.normpath(tmp_path / "deploy" / context)) == folder
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "unless-stopped"
        assert "COPY requirements.txt" in service["build"]["dockerfile_inline"]
    assert content["services"]["up"]["command"][-2:] == ["--runners", "0"]
    assert content["services"]["runner"]["command"][:2] == ["everloop", "runner"]


def test_no_file_has_a_secret(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-secret")
    monkeypatch.setenv("EVERLOOP_STORE", "postgresql://ann:hunter2-secret@db/x")
    assert "hunter2" not in systemd_unit(folder) + compose_file(folder, tmp_path / "compose.yaml")


def test_a_file_that_was_edited_is_not_overwritten(tmp_path):
    path = tmp_path / "units" / "everloop.service"
    write_service_file(path, "a")
    write_service_file(path, "a")
    with pytest.raises(AlreadyExistsError, match="differs"):
        write_service_file(path, "b")
    assert path.read_text() == "a"
