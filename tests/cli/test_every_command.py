"""Every command works in words and with --json, and refuses a wrong input with what helps."""

from __future__ import annotations

import pytest
from tests.cli.test_commands import commands

ELSEWHERE = {
    "demo": "it simulates a year: tests/demo",
    "up": "it runs until Ctrl-C: tests/server",
    "runner": "it runs until Ctrl-C: tests/loop/worker/test_processes.py",
    "runs cancel": "it needs a queued run: tests/loop/worker/test_processes.py",
    "server": "it runs until Ctrl-C: tests/server/test_command.py",
    "serve": "it runs until Ctrl-C: test_serve.py",
    "models adopt": "it needs a folder from MLflow: test_adopt.py",
    "models check": "it needs a loop of the model: tests/loop/gates/test_gate_loop.py",
    "monitor compare": "it needs two versions with labels: test_monitor_performance.py",
    "monitor fairness": "it needs a model of two classes: test_monitor_performance.py",
    "replay": "it trains for each policy: tests/replay",
    "compile kfp": "it needs a loop: tests/integrations/kubeflow",
    "store move": "the store would be elsewhere for what follows: tests/stores/test_relocation.py",
    "ci run": "it needs a git repository: tests/ci/test_check_change.py",
    "ci note": "it needs GitLab: tests/ci/test_gitlab_note.py",
    "ci release": "it needs a loop with a model: tests/ci/test_release_command.py",
    "ci promote": "it needs two stores: tests/ci/test_release_command.py",
    "webhooks test": "it sends a request: test_webhooks.py",
}
"""Commands that the furnished store does not suffice for, and which test runs them."""

BEFORE = {
    "release resume double": "release pause double",
    "restore copy.tar --home copy": "backup copy.tar",
    "trigger numbers --reason again": "run rows",
    "runs import runs.zip": "runs export {run}",
    "data check numbers.csv numbers.toml": "data contract numbers@1 -o numbers.toml",
    "models archive double@1": "models promote double@2",
    "models import package --as copy": "models export double@1 -o package",
    "trust rm {digest}": "trust add {digest}",
    "monitor unmute {incident}": "monitor mute {incident}",
}
"""What has to be done before a command works."""

WORKS = {
    "init new": "Created a project in",
    "run rows": "1 of 1 step ran.",
    "trigger numbers --reason again": "Called 'numbers'",
    "triggers numbers": "the loop has not run yet",
    "predict double@1 -i numbers.csv -o scored.csv": "Scored 20 rows with double@1 → scored.csv",
    "reproduce {run} --show": "To reproduce the run 'run-1', this is executed:",
    "plan": "1 setting would change.",
    "apply": "1 setting changed.",
    "lineage numbers@2": "data numbers@2",
    "events": "registered",
    "verify": "The store is intact:",
    "gc --dry-run": "Would remove",
    "backup copy.tar": "Backed up the store → copy.tar",
    "restore copy.tar --home copy": "Verify it with: everloop verify --home copy",
    "runs ls": "other-1",
    "runs queue": "No run is queued.",
    "status": "Nothing runs. Start with: everloop up",
    "runs show {run}": "finished",
    "runs diff {run} {other}": "params",
    "runs plot {run}": "1 point, last 0.5",
    "runs export {run} {other}": "Exported 2 runs and 0 objects → runs.zip",
    "runs import runs.zip": "0 runs added, 0 updated, 1 already known.",
    "runs rm {run} --yes": "Deleted 1 run.",
    "runs restore {deleted}": "deleted-1",
    "runs archive {run}": "run-1",
    "data ls": "numbers@2",
    "data show numbers": "numbers@2",
    "data diff numbers@1 numbers@2": "numbers@1 → numbers@2",
    "data add numbers.csv more": "more@1: 20 rows",
    "data export numbers out.csv": "numbers@2: 20 rows → out.csv",
    "data rm numbers@1 --yes": "Undo with: everloop data restore numbers@1",
    "data restore gone@1": "gone@1 is restored.",
    "data profile numbers": "For the full report, add: --output page.html",
    "data contract numbers": "[[columns]]",
    "data check numbers.csv numbers.toml": "values of 'x' are above",
    "features ls": "fresh",
    "features show weather": "weather@1",
    "features materialize": "weather@1",
    "features backfill weather": "weather@1",
    "features get weather origin=JFK": "1.5",
    "features check weather": "weather@1",
    "models ls": "double@2",
    "models show double": "double@1",
    "models card double": "# double@1",
    "models gates double": "No gates were checked for double@1.",
    "models diff double@1 double@2": "Neither has metrics.",
    "models history double": "double@1",
    "models tag double team=a": "team",
    "models describe double@2 better": "Set the description of double@2.",
    "models archive double@1": "double@1 is archived.",
    "models unarchive spare@1": "spare@1 is registered.",
    "models promote double@1 --alias best": "double@best is now double@1.",
    "models rollback double": "Rolled back double@2.",
    "models requests": "user:ann",
    "models approve {request}": "approved. Promote it with: everloop models promote double@2 --alias staging",
    "models reject {request}": "rejected.",
    "models withdraw {own}": "withdrawn.",
    "models policy": "double@staging",
    "models verify double@1": "double@1 is valid",
    "models sbom double@1": "CycloneDX",
    "models export double@1 -o package": "→ package",
    "models import package --as copy": "copy@1 (sha256:",
    "models context double@1 -o image": "docker build -t double:1 image",
    "models dockerfile double@1": "FROM python:",
    "models azure double@1 -o azure": "double@1 → azure/score.py",
    "endpoints ls": "double@2 10% canary",
    "endpoints show double": "double@1 90% champion",
    "endpoints set double max_rows=100": "max_rows",
    "endpoints route double double@1=70 double@2=30": "double: double@1 70%",
    "endpoints token double": "",
    "monitor run": "No window is due.",
    "monitor run --reference numbers.csv --current numbers.csv": "Nothing to worry about",
    "monitor ls": "'x' has risen.",
    "monitor show {incident}": "This costs accuracy.",
    "monitor ack {incident}": "Acknowledged: 'x' has risen.",
    "monitor mute {incident} --for 3d": "'x' has risen.",
    "monitor unmute {incident}": "Unmuted: 'x' has risen.",
    "monitor accept {incident}": "Accepted as the new normal: 'x' has risen.",
    "monitor resolve {incident}": "Resolved: 'x' has risen.",
    "monitor findings": "No findings.",
    "monitor performance double": "rmse of 'double'",
    "monitor coverage double": "Labels of 'double'",
    "monitor attribution double double@1": "x",
    "release pause double --reason holiday": "Paused double@2 at 10% of the traffic.",
    "release resume double": "double@2",
    "release approve double": "Approved double@2.",
    "release reject double --reason no": "Rejected double@2. double@1 now receives all traffic.",
    "monitor drift double": "predictions against 20 rows",
    "monitor baseline double@1 numbers.csv": "Stored the baseline of double@1: 20 rows",
    "release ls": "rolling_out",
    "release show double": "double@2",
    "release advance double": "double@2: rolling out, 50% of the traffic.",
    "release abort double": "double@1 now receives all traffic.",
    "release rollback double": "Rolled back double@2.",
    "ci init github": "checks every change",
    "ci environments": "everloop.toml declares no environments",
    "predictions ls double": "Predictions of 'double'",
    "predictions show {prediction}": "input x",
    "predictions export double -o log.csv": "Exported predictions of 'double' → log.csv",
    "labels add double labels.csv": "Added 2 labels to 'double'.",
    "trust ls": "machine",
    "trust add {digest}": "Trusted digest",
    "trust rm {digest}": "No longer trusted: digest",
    "trust show": "=",
    "users add bob": "bob: viewer",
    "users ls": "ann",
    "users role ann --role admin": "ann: admin",
    "users password ann": "password: ",
    "users rm ann": "Removed the user 'ann'.",
    "tokens create other --user ann": "",
    "tokens ls": "nightly",
    "tokens revoke nightly": "Revoked the token 'nightly'.",
    "webhooks add more https://93.184.215.14/x": "",
    "webhooks ls": "chat",
    "webhooks renew chat": "",
    "webhooks rekey": "Re-encrypted the secrets of 1 webhook with the new key.",
    "webhooks rm chat": "Removed the webhook 'chat'.",
}
"""A command line -> a part of what it prints."""


WRONG = {
    "demo --port many": (2, "--port", "everloop demo -h"),
    "init new --target x": (2, "--target was given without --data", "everloop init NAME --data FILE"),
    "init": (4, "already has a loop.py", "everloop run"),
    "run nothing": (3, "'nothing'", "There are: numbers, rows"),
    "run --set x=1 rows": (2, "x", ""),
    "trigger letters": (3, "'letters'", "everloop run"),
    "triggers letters": (3, "'letters'", "There are: numbers"),
    "up --every often": (2, "--every", "everloop up -h"),
    "server": (2, "there is no admin", "everloop users add NAME --role admin"),
    "serve triple": (3, "'triple'", "everloop models ls"),
    "predict triple -i numbers.csv -o out.csv": (3, "'triple'", "everloop models ls"),
    "reproduce nothing": (3, "'nothing'", "everloop runs ls"),
    "compile kfp nothing -o out.yaml": (3, "no loop 'nothing'", "numbers"),
    "store move ftp://nowhere": (3, "'ftp'", "sqlite, postgresql"),
    "plan nothing.toml": (2, "'nothing.toml'", "everloop plan FILE"),
    "apply nothing.toml": (2, "'nothing.toml'", "everloop plan FILE"),
    "lineage nothing": (3, "'nothing'", "MODEL@VERSION"),
    "events --kind nothing": (2, "--kind 'nothing'", "Choose from: run, queued_run"),
    "events --limit 0": (2, "--limit", "everloop events -h"),
    "verify --from copy.tar": (2, "--from", "Add --repair."),
    "gc --grace-s soon": (2, "--grace-s", "everloop gc -h"),
    "backup numbers.csv": (2, "'numbers.csv'", ".tar.zst"),
    "restore nothing.tar --home new": (3, "'nothing.tar'", ""),
    "runs ls --where loss>>1": (2, "loss>>1", "metrics.<name>"),
    "runs ls --state asleep": (2, "'asleep'", "States: scheduled"),
    "runs ls --order-by nothing": (2, "'nothing'", "Fields: name"),
    "runner nothing": (2, "nothing", ""),
    "runs queue --home nothing": (3, "nothing", "everloop init"),
    "runs cancel nothing": (3, "'nothing'", "everloop runs queue"),
    "status --check nothing": (2, "'nothing'", "Roles: reconciler"),
    "status --check runner": (9, "No runner", "everloop up"),
    "runs show nothing": (3, "'nothing'", "everloop runs ls"),
    "runs diff {run} nothing": (3, "'nothing'", "everloop runs ls"),
    "runs plot nothing": (3, "'nothing'", "everloop runs ls"),
    "runs plot {run} --metric lose": (3, "'lose'", "Their metrics: loss"),
    "runs export nothing": (3, "'nothing'", "everloop runs ls"),
    "runs export {run} --to numbers.csv": (2, "'numbers.csv'", "Write to 'numbers.zip'"),
    "runs import nothing.zip": (3, "'nothing.zip'", ""),
    "runs rm nothing --yes": (3, "'nothing'", "everloop runs ls"),
    "runs rm {run}": (2, "confirmation", "Add --yes."),
    "runs restore {run}": (3, "{run}", "everloop gc"),
    "runs archive nothing": (3, "'nothing'", "everloop runs ls"),
    "data ls nothing": (3, "'nothing'; datasets: numbers.", "everloop data ls"),
    "data show nothing": (3, "'nothing'", "everloop data ls"),
    "data diff numbers nothing": (3, "'nothing'", "everloop data ls"),
    "data add nothing.csv more": (6, "nothing.csv", "There are: .everloop"),
    "data export numbers numbers.csv": (4, "'numbers.csv'", "new file"),
    "data export numbers out.xls": (2, "'out.xls'", ".parquet, .csv"),
    "data rm nothing --yes": (3, "'nothing'", "everloop data ls"),
    "data restore numbers@1": (3, "'numbers@1'", "everloop gc"),
    "data profile nothing": (3, "'nothing'", "everloop data ls"),
    "data contract nothing": (3, "'nothing'", "everloop data ls"),
    "data check numbers.csv nothing.toml": (
        3,
        "'nothing.toml'",
        "everloop data contract DATASET --output nothing.toml",
    ),
    "features ls --home nothing": (3, "nothing", "everloop init"),
    "features show wind": (3, "'wind'", "weather. See: everloop features materialize"),
    "features materialize wind": (3, "'wind'", "There are: weather"),
    "features backfill wind": (3, "'wind'", "There are: weather"),
    "features get weather JFK": (2, "'JFK'", "COLUMN=VALUE"),
    "features check wind": (3, "'wind'", "weather. See: everloop features materialize"),
    "models ls triple": (3, "'triple'; models: double", "everloop models ls"),
    "models show double@9": (3, "'double@9'. Versions: 1–2", "everloop models ls double"),
    "models gates double@9": (3, "'double@9'", "everloop models ls double"),
    "models check double@9": (3, "'double@9'", "everloop models ls double"),
    "models card double@9": (3, "'double@9'", "everloop models ls double"),
    "models diff double@1 double@9": (3, "'double@9'", "everloop models ls double"),
    "models history triple": (3, "'triple'; models: double", "everloop models ls"),
    "models history double --at noon": (2, "'noon'", "--at 2026-05-03T12:00Z"),
    "models tag double@1 team": (2, "'team'", "NAME=VALUE"),
    "models describe double@9 text": (3, "'double@9'", "everloop models ls double"),
    "models archive double@1": (4, "'double@1' is in use", "everloop models promote double@N"),
    "models unarchive double@9": (3, "'double@9'", "everloop models ls double"),
    "models promote double@9": (3, "'double@9'", "everloop models ls double"),
    "models rollback double@staging": (3, "'double@staging'", "aliases: champion"),
    "models requests triple": (3, "'triple'; models: double", "everloop models ls"),
    "models approve nothing": (3, "'nothing'", "everloop models requests --all"),
    "models approve {own}": (5, "your own request", "Another person must approve it."),
    "models reject nothing": (3, "'nothing'", "everloop models requests --all"),
    "models withdraw {request}": (5, "user:ann", "everloop models reject ID"),
    "models policy double@staging --approvals -1": (2, "-1", "from 0 to 10"),
    "models verify double@9": (3, "'double@9'", "everloop models ls double"),
    "models sbom double@9": (3, "'double@9'", "everloop models ls double"),
    "models export double@1 -o numbers.csv": (2, "'numbers.csv'", "Choose another name"),
    "models export double@1 -o out --format onnx": (3, "'onnx'", "Available: mlflow"),
    "models import nothing.tar.zst": (3, "'nothing.tar.zst'", "Check the path"),
    "models adopt double@1": (4, "'double@1' already has a package", "everloop models show double@1"),
    "models context double@9 -o image": (3, "'double@9'", "everloop models ls double"),
    "models dockerfile double@9": (3, "'double@9'", "everloop models ls double"),
    "models azure double@9 -o azure": (3, "'double@9'", "everloop models ls double"),
    "endpoints ls --home nothing": (3, "nothing", "everloop init"),
    "endpoints show triple": (3, "'triple'", "everloop endpoints ls"),
    "endpoints set double maxrows=1": (2, "'maxrows'", "Options: workers"),
    "endpoints set double max_rows": (2, "'max_rows'", "NAME= to reset"),
    "endpoints route double double@1=most": (2, "'double@1=most'", "delays@4=shadow"),
    "endpoints token triple": (3, "'triple'", "everloop endpoints ls"),
    "endpoints token double --remove --name nothing": (3, "'nothing'", "Tokens: none"),
    "monitor run --reference numbers.csv": (2, "--reference", "--log TABLE"),
    "monitor run --target x": (2, "--target", "everloop monitor run --reference A --current B"),
    "monitor run triple": (3, "'triple'", "numbers"),
    "monitor ls --severity info": (2, "--severity 'info'", "notice, alarm"),
    "monitor show nothing": (3, "'nothing'", "{incident} ('x' has risen.). See: everloop monitor ls --all"),
    "monitor ack nothing": (3, "'nothing'", "everloop monitor ls --all"),
    "monitor mute {incident} --for ever": (2, "'ever'", "such as '90s'"),
    "monitor unmute {incident}": (4, "{incident}", "everloop monitor show"),
    "monitor accept nothing": (3, "'nothing'", "everloop monitor ls --all"),
    "monitor resolve nothing": (3, "'nothing'", "everloop monitor ls --all"),
    "monitor findings --severity loud": (2, "--severity 'loud'", "info, warning, alarm"),
    "monitor coverage triple": (3, "'triple'", "everloop endpoints ls"),
    "monitor compare triple a@1 a@2": (3, "'triple'", "everloop endpoints ls"),
    "monitor fairness double --by nothing": (2, "'double' is regression", "everloop monitor performance"),
    "monitor attribution triple double@1": (3, "'triple'", "everloop endpoints ls"),
    "release pause triple": (3, "'triple'", "everloop release ls"),
    "release resume triple": (3, "'triple'", "everloop release ls"),
    "release approve triple": (3, "'triple'", "everloop release ls"),
    "release reject triple": (3, "'triple'", "everloop release ls"),
    "replay numbers.csv": (2, "--target and --time are needed", "everloop replay numbers.csv --target COLUMN"),
    "replay numbers.csv --time t": (2, "--target is needed", "everloop replay numbers.csv --target COLUMN"),
    "replay nothing.csv --target y --time t": (3, "nothing.csv", "numbers.csv"),
    "monitor performance double --metric roc_auc": (2, "roc_auc", "Use one of: rmse"),
    "monitor drift double --window often": (2, "'often'", "such as '90s'"),
    "monitor baseline double@1 labels.csv": (6, "'labels.csv'", "It has: key, value"),
    "release ls triple": (3, "'triple'", "everloop endpoints ls"),
    "release show triple": (3, "'triple'", "everloop release ls"),
    "release advance triple": (3, "'triple'", "everloop release ls"),
    "release abort triple": (3, "'triple'", "everloop release ls"),
    "release rollback triple": (3, "'triple'", "everloop endpoints ls"),
    "ci init jenkins": (2, "'jenkins'", "github, gitlab"),
    "ci run --base main": (2, "git", "inside a clone"),
    "ci note nothing.md": (3, "'nothing.md'", "everloop ci run --comment FILE"),
    "ci release --environment moon": (3, "'moon'", "[environments.moon]"),
    "ci promote --from dev --to moon": (3, "'moon'", "[environments.moon]"),
    "ci environments --dir /": (2, "loop.py", "everloop init"),
    "predictions ls triple": (3, "'triple'", "everloop endpoints ls"),
    "predictions show nothing": (3, "'nothing'", "everloop predictions ls ENDPOINT"),
    "predictions export double -o log.xls": (2, "'log.xls'", ".parquet, .csv, .jsonl"),
    "labels add triple labels.csv": (3, "'triple'", "everloop endpoints ls"),
    "labels add double numbers.csv": (6, "no column 'entity'", "They have: id, x"),
    "trust ls mine": (2, "mine", "everloop trust ls -h"),
    "trust add nonsense --name me": (2, "not a public key", "everloop trust show"),
    "trust rm nothing": (3, "'nothing'", "Trusted: machine"),
    "trust show nothing": (3, "'nothing'", "everloop trust ls"),
    "users add ann": (4, "'ann'", "everloop users ls"),
    "users add bob --role king": (2, "king", "Roles: viewer"),
    "users ls --home nothing": (3, "nothing", "everloop init"),
    "users role zoe --role admin": (3, "'zoe'", "everloop users ls"),
    "users password zoe": (3, "'zoe'", "everloop users ls"),
    "users rm zoe": (3, "'zoe'", "everloop users ls"),
    "tokens create more --user zoe": (3, "'zoe'", "everloop users ls"),
    "tokens create nightly --user ann": (4, "'nightly'", "everloop tokens ls"),
    "tokens create more --user ann --expires soon": (2, "'soon'", "such as '90s'"),
    "tokens ls --home nothing": (3, "nothing", "everloop init"),
    "tokens revoke nothing": (3, "'nothing'", "everloop tokens ls"),
    "webhooks add more nowhere": (2, "'nowhere'", "https://NAME/"),
    "webhooks ls --home nothing": (3, "nothing", "everloop init"),
    "webhooks test nothing": (3, "'nothing'", "everloop webhooks ls"),
    "webhooks renew nothing": (3, "'nothing'", "everloop webhooks ls"),
    "webhooks rekey --home nothing": (3, "nothing", "everloop init"),
    "webhooks rm nothing": (3, "'nothing'", "everloop webhooks ls"),
    "runs list": (2, "'list'", "Did you mean 'ls'?"),
    "models ls --limt 3": (2, "--limt", "--limit"),
    "backup": (2, "'path'", "everloop backup -h"),
}
"""A command line -> its exit code, the value or option at fault, and what helps."""


def name_of(words: str) -> str:
    """The command in a command line, such as `runs ls` in `runs ls --json`."""
    known = {" ".join(path) for path, _ in commands()}
    first, *rest = words.split()
    pair = " ".join((first, *rest[:1]))
    return pair if pair in known else first


def test_every_command_is_tried():
    known = {" ".join(path) for path, _ in commands()}
    assert known - {name_of(words) for words in WORKS} == set(ELSEWHERE)
    assert known - {name_of(words) for words in WRONG} == set()


@pytest.fixture
def prepared(furnished):
    def call(words: str, *more: str):
        if words in BEFORE:
            assert furnished(BEFORE[words]).code == 0
        return furnished(" ".join((words, *more)))

    return call


@pytest.mark.parametrize("words", WORKS)
def test_a_command_works_in_words(prepared, words):
    result = prepared(words)
    assert (result.code, WORKS[words] in result.out) == (0, True), result.out + result.err
    assert result.out.strip()
    assert "\x1b" not in result.out + result.err


@pytest.mark.parametrize("words", WORKS)
def test_json_is_one_document_and_nothing_else(prepared, words):
    result = prepared(words, "--json")
    assert (result.code, type(result.json) in (dict, list)) == (0, True), result.err


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_names_the_value_and_what_helps(furnished, words):
    result = furnished(words)
    code, value, advice = WRONG[words]
    text = " ".join(result.err.split())
    assert result.code == code, text
    assert value.format(**furnished.ids) in text
    assert advice.format(**furnished.ids) in text
    assert (result.out, "Traceback" in text) == ("", False)


@pytest.mark.parametrize(
    "words", ["runs show nothing", "events --limit 0", "models ls --limt 3", "runs list", "backup"]
)
def test_an_error_is_one_json_document_with_json(furnished, words):
    result = furnished(f"{words} --json")
    error = result.json["error"]
    assert (result.code, result.err) == (WRONG[words][0], "")
    assert WRONG[words][1] in error["message"]
    assert "everloop" in error["help"]
