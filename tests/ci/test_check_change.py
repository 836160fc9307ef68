"""A change is checked in a real git repository: what it touches, how the candidate compares, and the verdict."""

from __future__ import annotations

import json
from xml.etree import ElementTree  # noqa: ICN001

import pytest

from everloop.ci.comment import MARKER, MOST_CHARACTERS, comment_text, report_junit
from everloop.ci.report_pictures import write_pictures
from everloop.records import ModelVersion


def last_event(repository) -> int:
    with repository.open() as store:
        return store.records.last_event()


@pytest.mark.slow
def test_a_good_change_passes_and_leaves_the_store_alone(repository, tmp_path):
    repository.train()
    before = last_event(repository)
    repository.branch()
    repository.change("features.py", "return orders", "return orders.with_columns(double=orders['price'] * 2)")
    repository.commit("A feature")
    report = repository.check()
    assert report.verdict == "warn", report.reasons  # a new input breaks clients
    assert [change.breaking for change in report.schema] == [True]
    assert "'double'" in report.schema[0].what
    assert "column 'double' (float64) is new" in report.data
    assert {gate.outcome for gate in report.gates} <= {"pass", "undecided"}
    assert [step.name for step in report.steps.direct] == ["prepare"]
    assert report.steps.touched[-1].name == "release"
    deciding = report.metrics[0]
    assert deciding.metric == "roc_auc"
    assert deciding.low <= deciding.value <= deciding.high
    assert deciding.gain_low <= deciding.gain <= deciding.gain_high
    assert abs(deciding.gain) < 0.05
    assert {part.value for part in report.slices} == {"north", "south"}
    assert sum(part.rows for part in report.slices) == report.rows
    assert {one.feature for one in report.importances} == {"price", "weight", "shop", "double"}
    assert last_event(repository) == before
    with repository.open() as store:
        assert len(store.records.find(ModelVersion)) == 1
    written = write_pictures(report, tmp_path / "pictures")
    assert [path.name for path in written] == ["gains.svg", "importance.svg"]
    for path in written:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314 - written here


@pytest.mark.slow
def test_a_bad_change_fails_with_its_reason(repository, command, tmp_path):
    repository.train()
    repository.branch()
    repository.change("features.py", "return orders", "return orders.with_columns(price=orders['price'].shuffle(1))")
    repository.commit("Mix up a feature")
    comment, junit = tmp_path / "out" / "comment.md", tmp_path / "out" / "junit.xml"
    code, out = command("ci", "run", "--base", "main", "--full", "--comment", comment, "--junit", junit, "--json")
    assert code == 11
    report = json.loads(out)
    assert report["verdict"] == "fail"
    assert any("at least roc_auc 0.6" in reason for reason in report["reasons"])
    # The champion loses as much on the damaged rows, so only its own record shows the damage.
    assert any("on its own held-out rows" in reason for reason in report["reasons"])
    text = comment.read_text()
    assert text.startswith(MARKER)
    assert "❌ fail" in text
    assert "the distribution of" not in text
    root = ElementTree.parse(junit).getroot()  # noqa: S314 - written here
    assert int(root.attrib["failures"]) >= 2
    assert root.find(".//testcase[@name='verdict']/failure") is not None


@pytest.mark.slow
def test_a_dropped_column_breaks_the_contract(repository):
    repository.train()
    repository.branch()
    repository.change("features.py", "return orders", "return orders.drop('price')")
    repository.commit("Drop a feature")
    report = repository.check()
    assert report.verdict == "fail"
    assert "column 'price' is missing" in report.reasons[0]
    assert "everloop data contract shop" in report.reasons[1]
    assert ElementTree.fromstring(report_junit(report)).attrib["failures"] == "1"  # noqa: S314 - written here


@pytest.mark.slow
def test_a_leak_fails_although_the_metric_improves(repository):
    repository.train()
    repository.branch()
    repository.change("loop.py", 'exclude=["refund"]', "exclude=[]")
    repository.commit("Use the refund")
    report = repository.check()
    assert report.metrics[0].gain > 0.05
    assert report.verdict == "fail"
    assert any("no leakage" in reason and "refund" in reason for reason in report.reasons), report.reasons


@pytest.mark.slow
def test_without_a_store_the_gates_alone_decide(repository):
    repository.branch()
    repository.change("features.py", "return orders", "return orders.with_columns(double=orders['price'] * 2)")
    repository.commit("A feature")
    report = repository.check()
    assert report.champion is None
    assert any("no store" in remark for remark in report.remarks)
    assert report.gates
    assert not (repository.folder / ".everloop").exists()
    assert repository.git("status", "--porcelain") == ""


@pytest.mark.slow
def test_a_loop_that_cannot_run_is_reported(repository, command, tmp_path):
    repository.branch()
    repository.change("features.py", "return orders", "raise ValueError('a <b>bug</b> | @everyone')")
    repository.commit("A bug")
    comment = tmp_path / "comment.md"
    code, _ = command("ci", "run", "--base", "main", "--comment", comment, "--json")
    assert code == 7
    text = comment.read_text()
    assert "💥 error" in text
    assert "<b>" not in text
    assert "@everyone" not in text
    report = repository.check()
    root = ElementTree.fromstring(report_junit(report))  # noqa: S314 - written here
    assert root.attrib["errors"] == "1"


@pytest.mark.slow
def test_a_change_of_documents_runs_nothing(repository, command):
    repository.branch()
    repository.write("README.md", "A better shop.\n")
    repository.write("docs/shop.md", "Text.\n")
    repository.write("tests/test_shop.py", "def test(): assert 1 + 1 == 2\n")
    repository.change("features.py", "def add", "# a comment does not change a step\ndef add")
    repository.commit("Documents")
    report = repository.check()
    assert report.verdict == "pass"
    assert report.steps.touched == ()
    assert report.candidate is None
    assert "nothing was run" in report.reasons[0]
    assert "README.md" in comment_text(report)
    assert command("ci", "run", "--base", "main")[0] == 0


@pytest.mark.slow
def test_data_in_git_touches_every_step(repository):
    repository.branch()
    repository.write_orders(1600)
    repository.commit("More orders")
    report = repository.check()
    assert [step.name for step in report.steps.touched][:2] == ["orders", "prepare"]
    assert "data/orders.parquet" in report.steps.touched[0].reason
    assert report.candidate is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["$(touch-pwned)", "`id`;--upload-pack=x", "feature/<img-src=x>|@everyone"])
def test_hostile_names_of_branches_are_only_names(repository, name):
    repository.git("branch", "--", name.replace(" ", "-"), "main")
    repository.branch()
    repository.write("x`y|<b>.md", "Text.\n")
    repository.commit("$(touch pwned) <script>alert(1)</script>")
    report = repository.check(base=name)
    assert report.base == repository.git("rev-parse", "main")
    assert not list(repository.folder.glob("*pwned*"))
    text = comment_text(report)
    assert "<b>" not in text.replace("`x'y¦<b>.md`", "")
    assert len(text) < MOST_CHARACTERS
