"""A project folder whose store holds a little of everything, made once for a test session."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import polars as pl

LOOP = """
from datetime import UTC, datetime

import everloop as el
import polars as pl


@el.step
def rows() -> pl.DataFrame:
    return el.read("numbers.csv").collect()


loop = el.Loop("numbers", data=el.Dataset(rows, target="x"), train=el.AutoTrain(budget_s=1))


def readings():
    return pl.DataFrame({"origin": ["JFK", "LGA"], "t": [datetime(2024, 1, 1, tzinfo=UTC)] * 2, "temp": [1.5, 2.5]})


weather = el.FeatureView("weather", readings, entity="origin", time="t", ttl="36500d")
"""


def furnish(folder: Path) -> dict[str, str]:
    """Fill the folder; return the ids that commands take, by the word for each.

    It has two versions of the model `double` and an archived one of `spare`; the endpoint `double`, which rolls out the
    second one, has logged 20 predictions and has an open notice; two runs and a deleted one; the datasets `numbers` and
    `gone`, which is deleted; the feature view `weather`; a guarded alias with a request of Ann and one of this user;
    and a user, a token and a webhook. A file with a desired state wants one more alias.
    """
    from everloop.data import add_table, delete_snapshots
    from everloop.data.features import open_online
    from everloop.loop import load_project, materialize
    from everloop.loop.releases.rollout import start_release
    from everloop.records import Incident, ModelVersion
    from everloop.registry import archive, request_alias, save_model, set_policy
    from everloop.server.access import UserStore
    from everloop.server.server_options import ServerOptions
    from everloop.server.webhooks.webhook_delivery import Webhooks
    from everloop.stores import open_store
    from everloop.tracking import start_run
    from everloop.tracking.lifecycle import delete_run

    (folder / "loop.py").write_text(LOOP)
    table = pl.DataFrame({"id": range(20), "x": [float(number) for number in range(20)]})
    table.write_csv(folder / "numbers.csv")
    (folder / "everloop-state.toml").write_text('[models.double]\naliases = { steady = "double@1" }\n')
    (folder / "labels.csv").write_text("key,value\nk1,2.0\nk2,4.0\n")
    ids = {"digest": "sha256:" + "0" * 64}
    home = folder / ".everloop"
    with open_store(home, create=True) as store:
        for name in ("numbers", "numbers", "gone"):
            add_table(str(folder / "numbers.csv"), name, store, key="id")
            table = table.with_columns(pl.col("x") + 0.5)
            table.write_csv(folder / "numbers.csv")
        delete_snapshots(store, ["gone@1"])
        first = save_model(lambda rows: rows["x"] * 2.0, "double", table, task="regression", store=store)
        second = save_model(lambda rows: rows["x"] * 3.0, "double", table, task="regression", store=store)
        store.records.put(store.new(ModelVersion, model="spare", version=1, package=""))
        archive(store, "spare@1")
        start_release(store, "double", first)
        ids["prediction"] = _predict_and_label(store)
        ids["release"] = start_release(store, "double", second, steps=(10, 50, 100)).id
        for word in ("run", "other", "deleted"):
            with start_run(f"{word}-1", store=store, params={"lr": len(word)}) as run:
                run.log(loss=0.5, step=1)
            ids[word] = run.id
        delete_run(store, ids["deleted"])
        set_policy(store, "double", "staging", 1)
        ids["own"] = request_alias(store, "double", "staging", first.key, "it is known").id
        online = open_online(str(home / "online.db"))
        materialize(load_project(folder).views["weather"], store=store, online=online)
        online.close()
        now = store.now()
        noticed = store.new(
            Incident, endpoint="double", kind="drift", title="'x' has risen.", message="This costs accuracy.",
            began_at=now, seen_at=now,
        )  # fmt: skip
        store.records.put(noticed, verb="opened")
        ids["incident"] = noticed.id
        users = UserStore(store)
        users.add_user("ann", {"*": "editor"})
        users.create_token("nightly", "ann")
        Webhooks(store, ServerOptions()).add("chat", "https://93.184.215.14/events", ())
    with open_store(home, actor="user:ann") as store:
        ids["request"] = request_alias(store, "double", "staging", second.key, "better in winter").id
    return ids


def _predict_and_label(store) -> str:
    from everloop.serving import EndpointApp
    from everloop.serving.protocols.protocol import Request
    from everloop.serving.reloader import EndpointReloader

    app = EndpointApp(store, "double")
    EndpointReloader(store, app).load()
    keys = [f"k{number}" for number in range(20)]
    rows = [{"id": number, "x": number / 2} for number in range(20)]
    labels = [{"key": key, "value": number * 1.1} for number, key in enumerate(keys)]
    answers = [
        app.respond(Request("POST", path, json.dumps(body).encode(), perf_counter()))
        for path, body in (("/predict", {"rows": rows, "keys": keys}), ("/labels", {"labels": labels}))
    ]
    app.close()
    assert [answer.status for answer in answers] == [200, 200], answers
    return json.loads(answers[0].body)["ids"][0]
