"""Under which names a process may be addressed, by where it listens and what is configured."""

from __future__ import annotations

import os

import pytest

from everloop.errors import ProjectError
from everloop.http.host_names import HostRule, allowed_hosts, on_platform, rule_for

LOOPBACK = ("localhost", "localhost:8080", "127.0.0.1:1", "[::1]:9", "LOCALHOST", "localhost.")
STRANGE = (
    "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
    "", "[::1", "0.0.0.0", "127.0.0.2", "0x7f.1", "2130706433", "127.1", "localhost:80:80", "local host", "ai.",
    ".", "..", "localhost..", ".:80", "[::1%25lo]", "localhost#", "localhost/", "user:x@localhost", "localhost, evil",
)  # fmt: skip


def allows(rule: HostRule, name: str, local: str | None = "127.0.0.1") -> bool:
    return rule.allows(name.encode(), local)


def test_on_loopback_only_loopbacks_names_and_the_configured_ones() -> None:
    for rule in (HostRule(), rule_for("127.0.0.1"), rule_for("localhost", contained=True), rule_for("::1", ())):
        assert all(allows(rule, name) for name in LOOPBACK)
        assert not any(allows(rule, name) for name in STRANGE), [n for n in STRANGE if allows(rule, n)]
    rule = rule_for("127.0.0.1", ("ml.example.com", "*.lab.example.com"))
    assert allows(rule, "ML.example.com:443")
    assert allows(rule, "a.lab.example.com")
    assert not any(allows(rule, name) for name in ("lab.example.com", "xlab.example.com", "evil.example"))


def test_elsewhere_a_token_stands_for_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = rule_for("0.0.0.0", asks_token=True)
    assert allows(asked, "anything.example.com")
    assert not allows(asked, "a b")
    named = rule_for("0.0.0.0", ("ml.example.com",), asks_token=True)
    assert allows(named, "ml.example.com")
    # Probes come by address.
    assert allows(named, "10.1.2.3:8080", "172.17.0.2")
    assert not allows(named, "evil.example")


def test_a_container_is_open_to_its_platform_and_to_no_web_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if on_platform({name: ""}):
            monkeypatch.delenv(name)
    plain = rule_for("0.0.0.0", contained=True)
    for name in (
        *LOOPBACK,
        "10.1.2.3",
        "[fd00::1]:8080",
        "model",
        "model.local",
        "model.ns.svc.cluster.local",
        "host.internal",
    ):
        assert allows(plain, name, "172.17.0.2"), name
    for name in ("evil.example", "model.example.com", "127.1", "0x7f.1", "2130706433", "evil.locale", ".", "..", ".:1"):
        assert not allows(plain, name, "172.17.0.2"), name
    for variable in (
        "KUBERNETES_SERVICE_HOST",
        "AIP_HTTP_PORT",
        "SAGEMAKER_BIND_TO_PORT",
        "K_SERVICE",
        "AZUREML_MODEL_DIR",
    ):
        monkeypatch.setenv(variable, "x")
        assert allows(rule_for("0.0.0.0", contained=True), "model.ns.example.com")
        # A list that is given holds, also there.
        assert not allows(rule_for("0.0.0.0", ("ml.example.com",), contained=True), "evil.example")
        monkeypatch.delenv(variable)


def test_names_come_from_the_option_the_environment_or_the_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERLOOP_ALLOWED_HOSTS", raising=False)
    assert allowed_hosts((), tmp_path) == ()
    (tmp_path / "everloop.toml").write_text('[serving]\nallowed_hosts = ["a.example", "*.b.example"]\n')
    assert allowed_hosts((), tmp_path) == ("a.example", "*.b.example")
    monkeypatch.setenv("EVERLOOP_ALLOWED_HOSTS", "c.example, d.example e.example")
    assert allowed_hosts((), tmp_path) == ("c.example", "d.example", "e.example")
    assert allowed_hosts(("f.example",), tmp_path) == ("f.example",)
    monkeypatch.delenv("EVERLOOP_ALLOWED_HOSTS")
    for wrong in ('[serving]\nallowed_hosts = "a.example"\n', "[serving]\nallowed_hosts = [1]\n", "[serving\n"):
        (tmp_path / "everloop.toml").write_text(wrong)
        with pytest.raises(ProjectError):
            allowed_hosts((), tmp_path)


def test_what_is_remembered_is_bounded() -> None:
    rule = HostRule(("*.example.com",))
    for number in range(3_000):
        assert allows(rule, f"h{number}.example.com")
    assert len(rule._accepted) <= 1_000
