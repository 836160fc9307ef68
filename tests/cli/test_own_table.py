"""`everloop init NAME --data FILE --target COLUMN`, and runs of the project that it creates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import everloop


def churn(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    """A table as newcomers have it: blanks among numbers, an id, dates as text, a constant."""
    rng = np.random.default_rng(seed)
    tenure, monthly = rng.integers(0, 72, rows), np.round(rng.uniform(18, 120, rows), 2)
    contract = rng.choice(["Month-to-month", "One year", "Two year"], rows)
    drive = 2.0 * (contract == "Month-to-month") - 0.06 * tenure + 0.03 * (monthly - 65) + 0.5
    days = [f"{rng.integers(1, 29):02d}/{rng.integers(1, 13):02d}/20{rng.integers(18, 25)}" for _ in range(rows)]
    return pl.DataFrame(
        {
            "customerID": [f"{rng.integers(1000, 9999)}-{number:05d}" for number in range(rows)],
            "gender": rng.choice(["Male", "Female"], rows),
            "SeniorCitizen": rng.integers(0, 2, rows),
            "tenure": tenure,
            "Contract": contract,
            "MonthlyCharges": monthly,
            "TotalCharges": [" " if t < 2 else f"{t * m:.2f}" for t, m in zip(tenure, monthly, strict=True)],
            "SignedUp": days,
            "Country": ["US"] * rows,
            "Churn": np.where(rng.uniform(size=rows) < 1 / (1 + np.exp(-drive)), "Yes", "No"),
        }
    )


def quick(folder: str) -> str:
    """Limit training to one trial of the fastest algorithm. Returns the original loop.py."""
    path = Path(folder, "loop.py")
    text = path.read_text(encoding="utf-8").replace("budget_s=20", 'budget_s=20, trials=1, candidates=["linear"]')
    path.write_text(text, encoding="utf-8")
    sys.modules.pop("loop", None)
    return text


def run_loop(call, folder: str):
    sys.modules.pop("loop", None)
    return call("run", "--dir", folder, "--home", f"{folder}/.everloop", "--json")


def kinds(result) -> dict[str, str]:
    return {one["name"]: one["kind"] for one in result.json["columns"]}


@pytest.mark.slow
def test_a_csv_with_the_index_of_pandas_is_read_as_the_error_advises(everloop):
    churn(200).to_pandas().to_csv("churn.csv")
    asked = ("init", "churn", "--data", "churn.csv", "--target", "Churn")
    refused = everloop(*asked)
    assert refused.code != 0
    assert "leave it out with --drop-unnamed" in refused.err
    made = everloop(*asked, "--drop-unnamed", "--json")
    assert made.code == 0
    assert [one["name"] for one in made.json["columns"]] == churn(2).columns
    quick("churn")
    first = run_loop(everloop, "churn")
    assert first.code == 0
    assert first.json["version"]["key"] == "churn@1"
    scored = everloop("data", "profile", "churn.csv", "--drop-unnamed", "--json")
    assert scored.code == 0


@pytest.mark.slow
def test_a_csv_with_blanks_an_id_and_a_date_and_then_a_column_added_and_one_dropped(everloop):
    table = churn()
    table.write_csv("churn.csv")
    made = everloop("init", "churn", "--data", "churn.csv", "--target", "Churn", "--json")
    assert made.code == 0
    assert kinds(made) == {
        "customerID": "key",
        "gender": "category",
        "SeniorCitizen": "number",
        "tenure": "number",
        "Contract": "category",
        "MonthlyCharges": "number",
        # A reader that takes blanks for null gives numbers, one that does not gives text.
        "TotalCharges": kinds(made)["TotalCharges"],
        "SignedUp": "date as text",
        "Country": "constant",
        "Churn": "target",
    }
    assert kinds(made)["TotalCharges"] in ("number as text", "number")
    assert made.json["target"]["classes"] == ["No", "Yes"]
    quick("churn")
    first = run_loop(everloop, "churn")
    assert first.code == 0
    assert first.json["version"]["key"] == "churn@1"
    assert first.json["release"]["state"] == "completed"
    columns = first.json["columns"]
    assert columns["used"] == [
        "gender", "SeniorCitizen", "tenure", "Contract", "MonthlyCharges", "TotalCharges", "SignedUp",
    ]  # fmt: skip
    assert "same value: 'US'" in columns["left_out"]["Country"]
    assert columns["set_apart"] == {"customerID": "the key", "Churn": "the target"}
    inputs = {one["name"]: one["type"] for one in first.json["version"]["signature"]["inputs"]}
    assert (inputs["TotalCharges"], inputs["SignedUp"]) == ("float", "date")

    loyal = pl.Series("Loyalty", np.random.default_rng(1).integers(0, 5, table.height))
    table.with_columns(loyal).drop("gender").write_csv("churn.csv")
    stopped = run_loop(everloop, "churn")
    assert stopped.code == 6
    assert "everloop data contract churn --accept" in stopped.json["error"]["help"]
    home = ["--dir", "churn", "--home", "churn/.everloop"]
    assert everloop("data", "contract", "churn", "--accept", *home).code == 0
    second = run_loop(everloop, "churn")
    assert second.code == 0
    assert second.json["columns"]["added"] == ["Loyalty"]
    assert second.json["columns"]["removed"] == ["gender"]
    assert second.json["columns"]["against"] == "churn@1"
    assert second.json["release"]["state"] in ("rolling_out", "completed", "rejected")

    sys.modules.pop("loop", None)
    shown = everloop("run", *home).out
    assert "left out     Country: every row has the same value: 'US'" in shown
    assert "since churn@1: added Loyalty; removed gender" in shown
    assert "not used     customerID: the key" in shown
    assert "positive     'Yes': probabilities, precision, recall and f1 are about this class" in shown


OWN_MODEL = """

class ByContract:
    def fit(self, rows, labels):
        self.leaves = {"Month-to-month"}
        return self

    def predict(self, rows):
        return ["Yes" if one in self.leaves else "No" for one in rows["Contract"]]


@el.step
def fitted(train: pl.DataFrame) -> object:
    return ByContract().fit(train, train["Churn"])


loop = el.Loop("""


def project_with_own_model(everloop) -> Path:
    """Create a project whose training step fits the model of `OWN_MODEL`. Returns the path of its loop.py."""
    churn().write_csv("churn.csv")
    everloop("init", "churn", "--data", "churn.csv", "--target", "Churn")
    path = Path("churn/loop.py")
    text = path.read_text(encoding="utf-8").replace("\nloop = el.Loop(", OWN_MODEL)
    text = re.sub(r"train=el\.AutoTrain\(.*\),", "train=fitted,", text)
    text = re.sub(r"el\.AtLeast\(.*\)", 'el.AtLeast("accuracy", 0.3)', text)
    path.write_text(re.sub(r'Performance\("\w+"', 'Performance("accuracy"', text), encoding="utf-8")
    return path


@pytest.mark.slow
def test_an_edit_of_a_model_written_in_loop_py_makes_a_new_version(everloop, monkeypatch):
    path = project_with_own_model(everloop)
    first = run_loop(everloop, "churn")
    assert first.json["version"]["key"] == "churn@1"
    assert any("it gives no probabilities" in note for note in first.json["notes"])
    path.write_text(path.read_text(encoding="utf-8").replace('"Yes" if', '"No" if').replace('else "No"', 'else "Yes"'))
    second = run_loop(everloop, "churn")
    assert second.json["version"]["key"] == "churn@2"
    accuracy = [one.json["version"]["metrics"]["accuracy"] for one in (first, second)]
    assert sum(accuracy) == pytest.approx(1)
    monkeypatch.chdir("churn")
    assert "- it gives no probabilities" in everloop("models", "card", "churn@2").out


@pytest.mark.slow
def test_the_positive_class_of_a_model_written_in_loop_py_is_named_in_the_dataset(everloop):
    path = project_with_own_model(everloop)
    text = path.read_text(encoding="utf-8")
    versions = []
    for positive in ("Yes", "No"):
        named = text.replace('target="Churn",', f'target="Churn", positive="{positive}",')
        path.write_text(named, encoding="utf-8")
        versions.append(run_loop(everloop, "churn").json["version"])
        assert versions[-1]["signature"]["classes"][1] == positive
    recalls = [version["metrics"]["recall"] for version in versions]
    assert versions[0]["metrics"]["accuracy"] == versions[1]["metrics"]["accuracy"]
    assert recalls[0] != recalls[1]
    path.write_text(text.replace('target="Churn",', 'target="Churn", positive="yes",'), encoding="utf-8")
    refused = run_loop(everloop, "churn")
    assert "positive= is 'yes', which is not a value of the target 'Churn'" in refused.json["error"]["message"]


@pytest.mark.slow
def test_the_written_project_has_a_test_that_passes(everloop):
    churn(120).write_csv("churn.csv")
    everloop("init", "shop", "--data", "churn.csv", "--target", "Churn")
    source = Path("shop/loop.py").read_text()
    assert 'el.read("../churn.csv")' in source
    assert "def churn() -> pl.LazyFrame" in source
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "shop/tests"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(everloop_folder()))},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert Path("shop/.github/workflows/everloop.yml").is_file()
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "160", "shop"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout


def everloop_folder() -> Path:
    return Path(everloop.__file__).parents[1]


def test_classes_names_of_every_kind_and_a_rare_class(everloop):
    rng = np.random.default_rng(2)
    rows = 240
    odd = ["class", "two words", "größe", "a.b", 'quo"te', "new\nline", "{brace}", "[list]", "back\\slash"]
    table = pl.DataFrame({name: rng.normal(size=rows) for name in odd})
    drive = table["class"] + table["größe"]
    level = pl.Series(np.select([drive > 0.6, drive < -0.6], ["high", "low"], "mid"))
    table = table.with_columns(
        pl.Series("art", ["only one", *level.to_list()[1:]]), pl.Series("", range(rows)), pl.lit(None).alias("leer")
    )
    table.write_parquet("Daten 2024.parquet")
    made = everloop("init", "größe", "--data", "Daten 2024.parquet", "--target", "art", "--json")
    assert made.code == 0, made.out
    assert made.json["target"]["task"] == "multiclass"
    assert made.json["target"]["classes"] == ["high", "low", "mid"]
    assert kinds(made)["leer"] == "empty"
    source = quick("größe")
    assert "'only one'" in source
    assert "def daten_2024()" in source
    done = run_loop(everloop, "größe")
    assert done.code == 0, done.out
    assert done.json["version"]["model"] == "grosse"
    plain = {'quo"te': "quo_te", "new\nline": "new_line", "back\\slash": "back_slash"}
    assert set(done.json["columns"]["used"]) == {plain.get(name, name) for name in odd}
    assert set(done.json["version"]["signature"]["classes"]) == {"high", "low", "mid"}


def test_amounts_with_a_time_and_a_key_in_lines_of_json(everloop):
    rng = np.random.default_rng(3)
    rows = 200
    size = rng.uniform(20, 200, rows)
    months = [f"2023-{1 + number // 20:02d}-{1 + number % 20:02d} 10:00" for number in range(rows)]
    pl.DataFrame(
        {
            "flat": [f"f{number}" for number in range(rows)],
            "sold": months,
            "size": size,
            "price": [f"{value:,.2f} €" for value in 3000 * size + rng.normal(0, 9000, rows)],
        }
    ).write_ndjson("flats.jsonl")
    options = ["--target", "price", "--time", "sold", "--key", "flat"]
    made = everloop("init", "flats", "--data", "flats.jsonl", *options, "--json")
    assert made.code == 0, made.out
    assert (made.json["target"]["task"], made.json["metric"]) == ("regression", "r2")
    assert kinds(made) == {"flat": "key", "sold": "time", "size": "number", "price": "target"}
    assert "AUC" not in quick("flats").upper()
    done = run_loop(everloop, "flats")
    assert done.code == 0, done.out
    assert done.json["version"]["metrics"]["r2"] > 0.9
    assert [gate["outcome"] for gate in done.json["gates"]] == ["pass"] * 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_unbalanced_target_is_judged_by_what_says_something_about_it(everloop, suffix):
    table = churn(600).with_columns(Churn=pl.int_range(600) % 40 == 0)
    getattr(table, f"write_{suffix}")(f"rare.{suffix}")
    made = everloop("init", "rare", "--data", f"rare.{suffix}", "--target", "Churn", "--json")
    assert made.json["metric"] == "average_precision"
    assert 'el.AtLeast("average_precision", 0.05)' in Path("rare/loop.py").read_text()


TABLE = churn(100)


@pytest.mark.parametrize(
    ("frame", "arguments", "code", "says"),
    [
        (TABLE, ["--data", "chrun.csv", "--target", "Churn"], 3, "Did you mean 'churn.csv'"),
        (TABLE, ["--data", "churn.csv"], 2, "--target"),
        (TABLE, ["--target", "Churn"], 2, "--data"),
        (TABLE, ["--data", "churn.csv", "--target", "churn"], 6, "Did you mean 'Churn'"),
        (TABLE, ["--data", "churn.csv", "--target", "Churn", "--time", "when"], 6, "no column 'when' for --time"),
        (TABLE, ["--data", "churn.csv", "--target", "Churn", "--time", "Contract"], 6, "cannot be read as times"),
        (
            TABLE,
            ["--data", "churn.csv", "--target", "Churn", "--key", "tenure"],
            6,
            "Columns that are unique: 'customerID'",
        ),
        (TABLE, ["--data", "churn.csv", "--target", "Churn", "--key", "Churn"], 2, "cannot be two"),
        (TABLE, ["--data", "churn.csv", "--target", "Country"], 6, "one value only"),
        (TABLE, ["--data", "churn.csv", "--target", "SignedUp"], 6, "SignedUp"),
        (TABLE.with_columns(Churn=None), ["--data", "churn.csv", "--target", "Churn"], 6, "no value in any"),
        (TABLE.head(30), ["--data", "churn.csv", "--target", "Churn"], 6, "30 rows with 'Churn' are too few"),
        (TABLE.head(0), ["--data", "churn.csv", "--target", "Churn"], 6, "has no rows"),
        (TABLE.select("Churn", "customerID"), ["--data", "churn.csv", "--target", "Churn"], 6, "No column is left"),
        (None, ["--data", "churn.csv", "--target", "Churn"], 6, "empty"),
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(everloop, frame, arguments, code, says):
    if frame is None:
        Path("churn.csv").write_text("")
    else:
        frame.write_csv("churn.csv")
    result = everloop("init", "new", *arguments)
    assert result.code == code, result.err
    assert says in result.err.replace("\n", " ")
    assert "Traceback" not in result.err
    assert not Path("new").exists()


def test_a_project_is_never_written_over(everloop):
    TABLE.write_csv("churn.csv")
    Path("taken").write_text("mine")
    assert everloop("init", "taken", "--data", "churn.csv", "--target", "Churn").code == 4
    assert everloop("init", "new", "--data", "churn.csv", "--target", "Churn").code == 0
    before = Path("new/loop.py").read_text()
    again = everloop("init", "new", "--data", "churn.csv", "--target", "Churn")
    assert again.code == 4
    assert "already has a loop.py" in again.err
    assert Path("new/loop.py").read_text() == before


def test_a_failed_write_leaves_nothing_behind(everloop, monkeypatch):
    TABLE.write_csv("churn.csv")
    write = Path.write_text

    def full(path: Path, text: str, **options: object) -> int:
        if path.name == "test_loop.py":
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    result = everloop("init", "new", "--data", "churn.csv", "--target", "Churn")
    assert result.code == 2
    assert "No space left" in result.err
    assert not Path("new").exists()


def test_semicolons_are_recognised(everloop):
    TABLE.write_csv("churn.csv", separator=";")
    result = everloop("init", "new", "--data", "churn.csv", "--target", "Churn")
    assert "--separator ';'" in result.err
    assert everloop("init", "new", "--data", "churn.csv", "--target", "Churn", "--separator", ";").code == 0
    assert 'el.read("../churn.csv", separator=";")' in Path("new/loop.py").read_text()
