"""Reports stay valid whatever a gate writes."""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree as ET

from hypothesis import given, strategies as st

from everloop.loop.gates.gate_report import junit_xml, markdown_report, report_data, verdict
from everloop.records import GateResult

AT = datetime(2024, 1, 1, tzinfo=UTC)


def result(gate="auc", outcome="pass", message="fine", severity="error"):
    return GateResult(
        id="1", project="p", created_at=AT, gate=gate, outcome=outcome, candidate="m@1", message=message,
        severity=severity,
    )  # fmt: skip


TEXT = st.text(st.characters(), max_size=40)


@given(TEXT, TEXT, TEXT, st.sampled_from(["pass", "fail", "undecided"]), st.sampled_from(["error", "warning"]))
def test_any_text_gives_valid_reports(version, gate, message, outcome, severity):
    results = [result(gate, outcome, message, severity), result()]
    root = ET.fromstring(junit_xml(results, version).encode("utf-8"))  # noqa: S314 - our own text
    suite = root[0]
    assert len(suite) == 2
    kinds = [case[0].tag for case in suite]
    rejected = outcome == "fail" and severity == "error"
    expected = "failure" if rejected else "system-out" if outcome == "pass" else "skipped"
    assert kinds == [expected, "system-out"]
    assert suite.get("failures") == str(kinds.count("failure"))
    assert suite.get("skipped") == str(kinds.count("skipped"))
    rows = [line for line in markdown_report(results, version).split("\n") if line.startswith("| ")]
    assert len(rows) == 3
    assert report_data(results, version)["rejected"] is rejected


def test_control_characters_and_markup_are_kept_out():
    found = junit_xml([result("a<b>&\"'", "fail", "line\nnext\x00\x1b[31m ]]> \ud800")], "m@1")
    case = ET.fromstring(found.encode("utf-8"))[0][0]  # noqa: S314 - our own text
    assert case.get("name") == "a<b>&\"'"
    assert case[0].get("message") == "line\nnext\ufffd\ufffd[31m ]]> \ufffd"
    assert "a \\| b" in markdown_report([result(message="a | b")], "m@1")


def test_the_verdict_names_the_gates():
    assert verdict([]) == "No gates were checked."
    assert verdict([result(), result("size", "fail", severity="warning")]) == "Passed: 1 of 2 gates. Warnings: size."
    assert verdict([result("auc", "fail"), result()]) == "Rejected: 1 of 2 gates failed (auc)."
    assert verdict([result("auc", "undecided")]).startswith("Undecided: auc.")


def test_a_stored_result_without_a_severity_is_an_error():
    import msgspec

    old = msgspec.json.decode(msgspec.json.encode(result()))
    del old["severity"]
    assert msgspec.convert(old, GateResult).severity == "error"
