"""Server settings in `everloop.toml`."""

from __future__ import annotations

import pytest

from everloop.errors import ProjectError
from everloop.server.server_options import ServerOptions
from everloop.server.server_settings import ServerSettings, read_settings


def said(folder, text):
    (folder / "everloop.toml").write_text(text)
    return read_settings(folder / "deeper")


def test_without_a_file_and_without_a_section_it_is_the_usual(tmp_path):
    assert said(tmp_path, '[project]\nname = "p"\n') == ServerSettings() == ServerSettings(port=8100)


def test_what_it_says_and_what_the_command_line_changes(tmp_path):
    settings = said(
        tmp_path,
        '[server]\nhost = "0.0.0.0"\nport = 5000\nauth = true\nallowed_hosts = ["ml.example.com"]\n'
        'default_artifact_root = "s3://bucket/team"\nupload_bytes = 1000\n',
    )
    assert (settings.host, settings.port, settings.auth) == ("0.0.0.0", 5000, True)
    assert settings.options == ServerOptions(
        allowed_hosts=("ml.example.com",), default_artifact_root="s3://bucket/team", upload_bytes=1000
    )
    changed = settings.changed(
        port=0, auth=None, host=None, upload_bytes=2000, allowed_hosts=(), public_url="https://x"
    )
    assert (changed.host, changed.port, changed.auth) == ("0.0.0.0", 0, True)
    assert changed.options.allowed_hosts == ("ml.example.com",)
    assert (changed.options.upload_bytes, changed.options.public_url) == (2000, "https://x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nprot = 1\n", r"\[server\] in '.*everloop.toml' has an unknown setting 'prot'"),
        ('[server]\nport = "x"\n', "Expected `int`, got `str` - at `port`"),
        ('[server]\nallowed_hosts = "x"\n', "at `allowed_hosts`"),
        ("server = 5\n", r"'server' in '.*everloop.toml' is not a section"),
        ("[server\n", "cannot be read"),
    ],
)
def test_what_no_server_knows_is_named(tmp_path, text, words):
    with pytest.raises(ProjectError, match=words):
        said(tmp_path, text)
