"""A promotion moves the very same package to the next environment, and refuses whatever is not that package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from everloop.ci import DeploymentEnvironment, promote_package, read_environments
from everloop.ci.deployment_environments import get_environment
from everloop.errors import ConflictError, CorruptionError, NotFoundError, ProjectError, TrustError
from everloop.loop.releases.promotion import promote
from everloop.loop.releases.rollout import champion_of
from everloop.packages import build_package
from everloop.records import Alias, EndpointRecord, ModelVersion, Package
from everloop.registry import ApprovalError, approve, get_version, list_requests, load_model, register, set_policy
from everloop.stores import Store, open_store
from everloop.testing.models import sample_table, train_sample

NAMES = ("dev", "staging")


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Store]]:
    """The stores of `dev`, which has a champion, and of `staging`, which is empty."""
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    dev, staging = (open_store(tmp_path / name, actor="user:ann@here") for name in NAMES)
    with dev, staging:
        built = build_package(train_sample("linear"), store=dev, sample=sample_table())
        version = register(dev, "delays", built.digest, metrics={"roc_auc": 0.8}, run="run-1")
        promote(dev, "delays-dev", version, "first")
        yield dev, staging


@pytest.mark.slow
def test_the_same_digest_arrives_and_answers_the_same(stores):
    dev, staging = stores
    done = promote_package(dev, staging, "delays", names=NAMES, reason="tested")
    source, version = get_version(dev, done.source), get_version(staging, done.version)
    assert source.package == version.package == done.package
    assert version.metrics == source.metrics
    assert version.tags["promoted_from"] == "dev"
    assert version.tags["source_run"] == "run-1"
    assert champion_of(staging, "delays") == version.key
    assert done.state == "completed"
    rows = sample_table().head(20)
    one, other = (load_model(store, "delays").answer_frame(rows).scores for store in stores)
    assert one.tolist() == other.tolist()
    for store, key in ((dev, done.source), (staging, done.version)):
        events = [event for event in store.records.events_since(0) if event.verb == "promoted" and event.key == key]
        assert len(events) == 1
        assert events[0].actor == "user:ann@here"
        assert events[0].data["reason"] == "tested"
        assert events[0].data["package"] == done.package


@pytest.mark.slow
def test_a_second_promotion_does_nothing(stores):
    dev, staging = stores
    promote_package(dev, staging, "delays", names=NAMES)
    before = dev.records.last_event(), staging.records.last_event()
    done = promote_package(dev, staging, "delays", names=NAMES)
    assert (done.release, done.state) == (None, "already there")
    assert (dev.records.last_event(), staging.records.last_event()) == before
    assert len(staging.records.find(ModelVersion)) == 1


def test_another_digest_than_the_checked_one_is_refused(stores):
    dev, staging = stores
    with pytest.raises(ConflictError, match="is expected"):
        promote_package(dev, staging, "delays", names=NAMES, expect="sha256:" + "0" * 64)
    assert staging.records.find(Package) == []
    assert staging.records.find(ModelVersion) == []


def test_an_unsigned_or_wrongly_signed_package_is_refused(stores):
    dev, staging = stores
    record = dev.records.find(Package)[0]
    for trust in (None, {**record.trust, "signature": record.trust["signature"][::-1]}):
        current = dev.records.find(Package)[0]
        dev.records.update(replace(current, trust=trust))
        with pytest.raises(TrustError, match="is not promoted"):
            promote_package(dev, staging, "delays", names=NAMES)
    assert staging.records.find(ModelVersion) == []


def test_a_damaged_package_is_refused(stores):
    dev, staging = stores
    objects = [path for path in (dev.home / "objects").rglob("*") if path.is_file()]
    for path in objects:
        path.chmod(0o600)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with open_store(dev.home) as again, pytest.raises(CorruptionError):
        promote_package(again, staging, "delays", names=NAMES)
    assert staging.records.find(ModelVersion) == []


def test_a_rejected_version_is_refused(stores):
    dev, staging = stores
    version = get_version(dev, "delays")
    dev.records.update(replace(version, state="rejected"))
    with pytest.raises(ConflictError, match="rejected"):
        promote_package(dev, staging, version.key, names=NAMES)


@pytest.mark.slow
def test_the_policy_of_the_target_decides(stores):
    dev, staging = stores
    set_policy(staging, "delays", "champion", 1)
    for _ in range(2):
        with pytest.raises(ApprovalError, match="everloop models approve"):
            promote_package(dev, staging, "delays", names=NAMES)
    assert champion_of(staging, "delays") is None
    requests = list_requests(staging, "delays", "champion", state="open")
    assert len(requests) == 1
    approve(staging.as_actor("user:bob@here"), requests[0].id)
    assert promote_package(dev, staging, "delays", names=NAMES).state == "completed"


@pytest.mark.slow
def test_a_rollout_of_the_target_begins_with_its_first_share(stores):
    dev, staging = stores
    promote_package(dev, staging, "delays", names=NAMES)
    built = build_package(train_sample("lightgbm"), store=dev, sample=sample_table())
    promote(dev, "delays-dev", register(dev, "delays", built.digest), "second")
    done = promote_package(dev, staging, "delays", names=NAMES, rollout=(10.0, 100.0))
    again = promote_package(dev, staging, "delays", names=NAMES, rollout=(10.0, 100.0))
    assert done.state == again.state == "rolling_out"
    assert done.release == again.release
    routes = staging.records.find(EndpointRecord)[0].routes
    assert {route.version: route.percent for route in routes} == {"delays@1": 90.0, "delays@2": 10.0}
    assert staging.records.find(Alias)[0].version == "delays@1"


def config(folder: Path, text: str) -> Path:
    (folder / "everloop.toml").write_text(f'[project]\nname = "shop"\n{text}')
    return folder


def test_environments_are_read_with_their_stores(tmp_path):
    text = '[environments.staging]\nstore = "stages/staging"\nendpoint = "delays"\nrollout = [10, 100]\n'
    found = read_environments(config(tmp_path, text))
    assert found == {
        "staging": DeploymentEnvironment(
            "staging", tmp_path / "stages" / "staging", {}, "delays", (10.0, 100.0), "shop"
        )
    }
    with found["staging"].open(tmp_path, create=True) as store:
        assert store.home == tmp_path / "stages" / "staging"
        assert store.project == "shop"
    assert get_environment(tmp_path, "dev").home is None
    with pytest.raises(NotFoundError, match="no environment 'production'"):
        get_environment(tmp_path, "production")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[environments.staging]\nstor = "x"', "unknown setting 'stor'"),
        ("[environments.staging]\nstore = 3", "'store' in .* is not a text"),
        ('[environments.staging]\nrecords = "postgresql://h/d"', "no 'store'"),
        ('[environments.staging]\nstore = "x"\nrollout = [10]', "rise to 100"),
        ("environments = 3", "not a group of sections"),
        ("[environments]\nstaging = 3", "not a group of sections"),
    ],
)
def test_a_wrong_environment_is_named(tmp_path, text, message):
    (tmp_path / "everloop.toml").write_text(text)
    with pytest.raises(ProjectError, match=message):
        read_environments(tmp_path)
