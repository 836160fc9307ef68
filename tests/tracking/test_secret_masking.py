"""Secrets in the records of runs are masked before they are stored; values that only look similar are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everloop.records import Json, Run
from everloop.stores import Store, open_store
from everloop.tracking import start_run
from everloop.tracking.reproduction.code_patches import check_patch, completed, left_out, mask_patch, masked_lines
from everloop.tracking.reproduction.script_reproduction import reproduce_script
from everloop.tracking.secrets.masking import Masker, mask_arguments, mask_params, mask_text
from everloop.tracking.secrets.secret_names import MARK

S = "hunter2"
LONG = "Qx7" + "aB3dE5fG7h" * 4
# Put together here, so that no scanner of keys takes this file for a leak.
KEYS = {
    "github": "ghp" + "_" + LONG[:36],
    "github fine": "github" + "_pat_" + LONG,
    "gitlab": "glpat" + "-" + LONG[:20],
    "slack": "xoxb" + "-123456789012-" + LONG[:24],
    "slack hook": "https://hooks.slack." + "com/services/T0AB/B0CD/" + LONG[:24],
    "openai": "sk" + "-" + LONG,
    "openai project": "sk" + "-proj-" + LONG,
    "anthropic": "sk" + "-ant-api03-" + LONG,
    "huggingface": "hf" + "_" + LONG[:34],
    "aws": "AKIA" + "ABCDEFGH12345678",
    "google": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "google token": "ya29" + "." + LONG,
    "google secret": "GOCSPX" + "-" + LONG[:28],
    "azure": "abc8Q~" + "abcdefghijklmnopqrstuvwxyz012345",
    "azure storage": "A1b2" * 21 + "Zz==",
    "jwt": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0." + LONG[:30],
    "stripe": "sk" + "_live_" + LONG[:24],
    "npm": "npm" + "_" + LONG[:36],
    "pypi": "pypi" + "-" + LONG + LONG,
    "docker": "dckr" + "_pat_" + LONG[:27],
    "sendgrid": "SG" + "." + LONG[:22] + "." + LONG[:43],
    "databricks": "dapi" + "0123456789abcdef" * 2,
    "vault": "hvs" + "." + LONG[:24],
    "everloop": "evl" + "_" + LONG[:43],
    "groq": "gsk" + "_" + LONG,
}
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{LONG}\n{LONG}\n-----END RSA PRIVATE KEY-----"

COMMANDS = [
    ["--password", S],
    ["--password=" + S],
    ["-password", S],
    ["--PASSWORD", S],
    ["--db-password", S],
    ["--dbPassword", S],
    ["--db.password=" + S],
    ["--passwd", S],
    ["--passphrase", S],
    ["--pwd", S],
    ["--pass", S],
    ["--secret", S],
    ["--client-secret", S],
    ["--api-key", S],
    ["--apikey", S],
    ["--api_key=" + S],
    ["--apiKey", S],
    ["--token", S],
    ["--auth-token", S],
    ["--access-token=" + S],
    ["--hf_token", S],
    ["--credentials", S],
    ["--auth", "me:" + S],
    ["--password2", S],
    ["--private-key", S],
    ["--ssh-key", S],
    ["--wandb-key", S],
    ["password=" + S],
    ["token=" + S],
    ["db.password=" + S],
    ["+db.password=" + S],
    ["++db.password=" + S],
    ["-Dpassword=" + S],
    ["--set", "db.password=" + S],
    ["AWS_SECRET_ACCESS_KEY=" + S],
    ["PGPASSWORD=" + S],
    ["OPENAI_API_KEY=" + S],
    ["password:" + S],
    ["--conf", "spark.hadoop.fs.s3a.secret.key=" + S],
    ["--opt", f'{{"password": "{S}", "n": 3}}'],
    ["--opt", f'{{\\"password\\": \\"{S}\\"}}'],
    ["--opt", f"{{'api_key': '{S}'}}"],
    ["--dsn", f"Server=a;User=b;Password={S};"],
    ["--dsn", f"host=a password={S} dbname=c"],
    ["--dsn", f"AccountName=a;AccountKey={S}=;EndpointSuffix=c"],
    ["--dsn", f"Endpoint=sb://a/;SharedAccessKey={S}="],
    [f"https://me:{S}@host/path"],
    [f"postgresql://me:{S}@host:5432/db"],
    [f"redis://:{S}@host"],
    [f"mysql://me:p/{S}@host/db"],
    [f"postgresql://me:p@{S}@host/db"],
    [f"https://{S}{S}{S}@github.com/a/b"],
    [f"https://{S}{S}{S}:@api.host/x"],
    [f"https://host/x?sig={S}&a=1"],
    [f"https://host/x?a=1&access_token={S}"],
    [f"https://host/?X-Amz-Signature={S}"],
    ["-H", f"Authorization: Bearer {S}"],
    ["--header", f"Authorization: Basic {S}=="],
    [f"--header=X-Api-Key: {S}"],
    ["-H", f"Cookie: session={S}; b={S}"],
    [f"bearer {S}{S}"],
    ["curl", "-u", f"me:{S}"],
    ["curl", f"-ume:{S}"],
    ["curl", "--user", f"me:{S}", "https://x"],
    ["mysql", f"-p{S}", "db"],
    ["/usr/bin/mysqldump", f"-p{S}"],
    ["sshpass", "-p", S, "ssh", "x"],
    ["docker", "login", "-u", "me", "-p", S],
    ["az", "login", "-p", S],
    ["redis-cli", "-a", S],
    ["sh", "-c", f"mysql -p{S} db"],
    ["sh", "-c", f"tool --password {S} db"],
    ["sh", "-c", f"tool --password '{S}' db"],
    ["bash", "-c", f"export TOKEN={S}; run"],
    ["env", f"SECRET={S}", "python", "x.py"],
    ["--key", PEM.replace(LONG, S)],
    ["--password", "-1" + S],
    ["openssl", "-passin", f"pass:{S}"],
    ["--pat", S],
    ["GITHUB_PAT=" + S],
    ["--webhook-secret", S],
    ["--encryption-key", S],
    ["--user-password", S],
    ["token", "=", "x", f"secret: {S}"],
]

HARMLESS = [
    "--max-tokens 5",
    "--max_tokens=512",
    "tokenizer=bert",
    "--tokenizer bert-base",
    "--passes 3",
    "--pass 3",
    "keyboard",
    "--key flight_id",
    "key=flight_id",
    "--partition-key user",
    "--primary_key=id",
    "--public-key abc",
    "--cache-key x",
    "--sort-key at",
    "--pad-token PAD",
    "eos_token=</s>",
    "--bos-token BOS",
    "--num-pass=2",
    "forward_pass=fast",
    "--first-pass x",
    "--password-file /run/secrets/db",
    "--token-url https://host/token",
    "--secret-name db",
    "--auth-type basic",
    "--auth basic",
    "--no-password data.csv",
    "--ask-pass x",
    "--compass north",
    "--secretary Ann",
    "--author Ann",
    "author=Ann",
    "bypass=yes",
    "monkey=1",
    "--turkey 2",
    "val/auc",
    "metrics.auc",
    "--token=5",
    "--use-auth-token True",
    "password=None",
    "password=",
    "--password $PASSWORD",
    "password=${PASSWORD}",
    "token={token}",
    "--password <password>",
    "password=%PASSWORD%",
    "sha256:" + "ab12" * 16,
    "a" * 40,
    "5883e3867b58c25771afa38b4d2f1c9a0b1e2f3d",
    "https://host:8080/a@b",
    "https://me@host/x",
    "git@github.com:a/b.git",
    "ssh://git@host/a",
    "https://host/?q=token&page=2",
    "docker run -p 8080:80",
    "psql -p 5432",
    "ssh -p 22",
    "train.py -p 0.5",
    "sk-learn-contrib-lightning-models",
    "hf_transfer",
    "lr=0.1",
    "--lr 1e-3",
    "data/train.csv",
    "s3://bucket/key",
    "--signature abc",
    "signature=abc",
    "--tokens 7",
    "tokens=7",
    "--keys a,b",
    "eyJ",
    "AKIA",
    "ghp_short",
    "--bearer-of-news",
    "xox",
    "C:\\data",
    "a:b",
    "x=y=z",
    "--dropout=0.1",
    "model.layers.0.key_proj=4",
    "num_key_value_heads=8",
    "--key-dim 64",
    "--password-policy strict",
    "secret_santa.csv",
    "--token-type word",
    "token_count=10",
]


@pytest.mark.parametrize("words", COMMANDS, ids=[" ".join(words)[:60] for words in COMMANDS])
def test_a_secret_in_a_command_is_masked(words: list[str]) -> None:
    masked = mask_arguments(("python", "train.py", *words))
    assert len(masked) == len(words) + 2
    assert not any(S in word for word in masked)
    assert any(MARK.search(word) for word in masked)
    assert mask_arguments(masked) == masked


@pytest.mark.parametrize("name", KEYS)
def test_a_key_is_known_by_its_shape(name: str) -> None:
    key = KEYS[name]
    secret = key.removeprefix("https://")
    for text in (key, f"x={key}", f"got '{key}' from", f"https://host/{key}?a", f"\n{key}\n", f'{{"a":"{key}"}}'):
        assert secret not in mask_text(text), text
    assert not any(secret in word for word in mask_arguments(("python", "t.py", key, "--x", key)))


@pytest.mark.parametrize("words", HARMLESS)
def test_what_only_sounds_like_a_secret_stays(words: str) -> None:
    command = ("python", "train.py", *words.split(" "))
    assert mask_arguments(command) == command
    if not words.startswith(("docker", "ssh", "psql")):
        assert mask_text(words) == words


def test_the_second_half_of_a_pair_of_keys_goes_with_the_first() -> None:
    half = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    assert mask_arguments(("python", half))[1] == half
    assert half not in mask_arguments(("python", KEYS["aws"], half))[2]


def test_different_secrets_have_different_names() -> None:
    masked = mask_arguments(("x", "--password", "one1", "--password", "two2", "--token", "one1"))
    assert masked == (
        "x",
        "--password",
        "***password***",
        "--password",
        "***password-2***",
        "--token",
        "***password***",
    )


def test_a_private_key_is_masked_whole() -> None:
    for kind in ("RSA ", "EC ", "", "OPENSSH ", "ENCRYPTED ", "DSA "):
        text = PEM.replace("RSA ", kind)
        assert LONG not in mask_text(f"key: {text} end")
        assert mask_text(f"key: {text} end").endswith(" end")
    public = PEM.replace("PRIVATE", "PUBLIC")
    assert mask_text(public) == public


def test_code_keeps_what_is_code() -> None:
    code = [
        "token = read_token()",
        "token = tokenizer.encode(text)",
        "password: str",
        "def login(password: str = None) -> None:",
        "self.password = password",
        "api_key = os.environ['API_KEY']",
        "secret = getpass.getpass()",
        'parser.add_argument("--password")',
        'password = ""',
        'token = "<pad>"',
        'token = "{token}"',
        "key = 'id'",
        "config.password",
        "pad_token = '[PAD]'",
        'os.environ["TOKEN"] = token',
        "if token == other:",
        'headers = {"Authorization": f"Bearer {token}"}',
    ]
    for line in code:
        assert Masker().text(line, code=True) == line
    for line in (
        f'password = "{S}"',
        f"api_key='{S}'",
        f'{{"secret": "{S}"}}',
        f'f(token="{S}")',
        f'PASSWORD="{S}"',
        f'"""password="{S}" """',
        f'"Authorization": "Bearer {S}"',
        f'url = "postgres://a:{S}@b/c"',
    ):
        assert S not in Masker().text(line, code=True), line


def fail(store: Store, params: dict[str, object]) -> None:
    with start_run("train", store=store, params=params) as run:
        run.params["url"] = f"https://me:{S}@host"
        assert run.params["password"] == S  # the program itself keeps what it gave
        raise ValueError(f"cannot open postgresql://me:{S}@host/db")


def test_params_errors_and_commands_of_a_run_are_masked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "password": S,
        "nested": {"api_key": S, "list": [KEYS["openai"]]},
        "max_tokens": 5,
        "lr": 0.1,
        "pad_token": "[PAD]",
    }
    with pytest.raises(ValueError, match=S):
        fail(store, given)
    (record,) = store.records.find(Run)
    assert S not in repr(record)
    assert KEYS["openai"] not in repr(record)
    assert record.params["password"] == "***password***"
    assert {name: record.params[name] for name in ("max_tokens", "lr", "pad_token")} == {
        "max_tokens": 5,
        "lr": 0.1,
        "pad_token": "[PAD]",
    }
    for path in store.home.rglob("*"):
        if path.is_file():
            assert S.encode() not in path.read_bytes(), path


def test_masking_params_changes_nothing_else() -> None:
    values = {"a": 1, "b": None, "c": [1, {"d": "x"}], "e": "text", "f": {"token": 5, "secret": True}}
    assert mask_params(values) == values


@pytest.mark.parametrize(
    "params",
    [
        {"passwords": {"db": S, "mail": [S]}},
        {"credentials": {"user": {"value": S}}},
        {"api_keys": [S]},
        {"service": {"access_tokens": {"one": S}}},
        {"env": [{"name": "PASSWORD", "value": S}]},
        {"env": {"key": "db.password", "value": S}},
    ],
)
def test_secrets_in_containers_are_masked(params: dict[str, Json]) -> None:
    assert S not in str(mask_params(params))


def test_containers_of_other_names_stay() -> None:
    params: dict[str, Json] = {
        "max_tokens": {"prompt": "five"},
        "stop_tokens": ["end"],
        "keys": ["carrier", "day"],
        "partition_keys": ["day"],
        "columns": [{"name": "age", "value": "years"}],
        "passes": {"first": "fast"},
    }
    assert mask_params(params) == params


@pytest.mark.parametrize(
    "text",
    [
        f"user: me\npassword: {S}\nport: 1",
        f"db:\n  - api_key: {S}\r\n",
        f"[db]\npassword = {S}",
        f"A=1\nexport AWS_SECRET_ACCESS_KEY={S}\n",
    ],
)
def test_settings_in_a_parameter_of_several_lines_are_masked(text: str) -> None:
    masked = mask_params({"config": text})["config"]
    assert isinstance(masked, str)
    assert S not in masked
    assert masked.count("\n") == text.count("\n")


def test_code_in_a_parameter_of_several_lines_stays() -> None:
    code = "token = read_token()\npassword: str\nkey = keys[0]\nmax_tokens: 512\npassword = $PASSWORD\n"
    assert mask_params({"code": code}) == {"code": code}


def git(folder: Path, *words: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    subprocess.run(command, check=True, capture_output=True)


SCRIPT = """
import sys
from everloop.tracking import start_run
import settings
with start_run("train", params={"n": len(settings.PASSWORD)}) as run:
    run.log(n=len(sys.argv[2]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERLOOP_KEYS", str(tmp_path / "keys"))
    made = tmp_path / "project"
    made.mkdir()
    (made / "train.py").write_text(SCRIPT)
    (made / "settings.py").write_text('USER = "me"\nPASSWORD = "oldSecret9"\nTAIL = 1\n')
    (made / ".env").write_text("TOKEN=committedSecret9\n")
    (made / "conf.yaml").write_text("a: 1\npassword: oldSecret9\n")
    git(made, "init", "-q")
    git(made, "add", ".")
    git(made, "commit", "-qm", "first")
    return made


def run_script(folder: Path, home: Path) -> None:
    environment = {**os.environ, "EVERLOOP_STORE": str(home)}
    command = [sys.executable, "train.py", "--password", "argSecret9"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


@pytest.mark.slow
def test_changes_are_masked_and_apply_all_the_same(folder: Path, tmp_path: Path) -> None:
    (folder / "settings.py").write_text('USER = "you"\nPASSWORD = "newSecret9"\nTAIL = 1\n')
    (folder / ".env").write_text("TOKEN=changedSecret9\n")
    (folder / "conf.yaml").write_text("a: 2\npassword: oldSecret9\nb: 3\n")
    (folder / "fresh.py").write_text(f'KEY = """\n{PEM}\n"""\nx = 1\n')
    home = tmp_path / "home"
    run_script(folder, home)
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"Secret9" not in data, path
            assert LONG.encode() not in data, path
    with open_store(home) as store:
        (run,) = store.records.find(Run)
        assert run.source.changes is not None
        patch = store.objects.read(run.source.changes)
        assert left_out(patch) == [".env"]
        assert sorted(file.path for file in check_patch(patch)) == ["conf.yaml", "fresh.py", "settings.py"]
        names = masked_lines(patch)
        assert "settings.py:PASSWORD" in names
        with pytest.raises(Exception, match="secrets that were not recorded"):
            reproduce_script(store, run, tmp_path / "no")
        given = dict.fromkeys(names, "newSecret9") | {"password": "argSecret9"}
        done = reproduce_script(store, run, tmp_path / "scratch", given=given)
        assert done.identical, done.differences
        assert any(".env" in remark for remark in done.remarks)
        code = tmp_path / "scratch" / "code"
        assert (code / "settings.py").read_text() == (folder / "settings.py").read_text()
        assert (code / "conf.yaml").read_text() == (folder / "conf.yaml").read_text()
        assert (code / ".env").read_text() == "TOKEN=committedSecret9\n"
    assert b"Secret9" not in b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


@pytest.mark.slow
def test_it_can_be_turned_off(folder: Path, tmp_path: Path) -> None:
    (folder / "everloop.toml").write_text("[tracking]\nmask = false\n")
    run_script(folder, tmp_path / "home")
    with open_store(tmp_path / "home") as store:
        (run,) = store.records.find(Run)
        assert run.source.launch[1:] == ("train.py", "--password", "argSecret9")
        assert reproduce_script(store, run, tmp_path / "scratch").identical
    for setting in ('mask = "false"', "mask = true"):
        (folder / "everloop.toml").write_text(f"[tracking]\n{setting}\n")
        run_script(folder, tmp_path / "other")
    with open_store(tmp_path / "other") as store:
        assert all(run.source.launch[-1] == "***password***" for run in store.records.find(Run))


def section(path: str, line: str) -> bytes:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\nindex 0000000..1111111\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+{line}\n"
    ).encode()


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        "deep/.env.local",
        "prod.env",
        "server.key",
        "tls/cert.pem",
        "id_rsa",
        ".ssh/id_ed25519",
        ".netrc",
        ".npmrc",
        ".pypirc",
        "credentials.json",
        "secrets.yaml",
        "terraform.tfvars",
        ".git-credentials",
        "kubeconfig",
        "service-account-prod.json",
    ],
)
def test_files_made_for_secrets_are_left_out(path: str) -> None:
    masked = mask_patch(section("a.py", "x = 1") + section(path, S) + section("b.py", "y = 2"))
    assert S.encode() not in masked
    assert left_out(masked) == [path]
    assert [file.path for file in check_patch(masked)] == ["a.py", "b.py"]


@pytest.mark.parametrize(
    "path", [".env.example", "id_rsa.pub", "environment.py", "keyboard.key.py", "secrets.py", "monkey.txt"]
)
def test_files_that_only_sound_so_are_kept(path: str) -> None:
    patch = section(path, "x = 1")
    assert mask_patch(patch) == patch


def test_a_patch_without_secrets_keeps_every_byte() -> None:
    odd = (
        section("a.txt", "\u2028 \x0c \x1c \xe9").replace(b"\xc3\xa9", b"\xe9")
        + b"diff --git a/b.bin b/b.bin\nindex 1..2 100644\nGIT binary patch\nliteral 3\nKcmZQz00IC2\n\n"
        + b"literal 0\nHcmV?d00001\n\n"
    )
    assert mask_patch(odd) == odd
    assert completed(odd, Path("/none"), {}) == odd
    assert mask_patch(b"") == b""


@pytest.mark.parametrize(
    ("path", "line", "kept"),
    [
        ("deploy.sh", f"export TOKEN={S}", False),
        ("deploy.sh", "export TOKEN=$TOKEN", True),
        ("deploy.sh", 'T="${TOKEN}"', True),
        ("conf.yaml", f"password: {S}", False),
        ("conf.ini", f"password = {S}", False),
        ("conf.toml", f'password = "{S}"', False),
        ("conf.json", f'"password": "{S}",', False),
        ("a.ipynb", f'"password = \\"{S}\\"\\n",', False),
        ("a.py", f"password = {S}", True),
        ("Dockerfile", f"ENV API_KEY={S}", False),
        ("a.py", f"connect('{KEYS['openai']}')", False),
        ("a.js", f"const apiKey = '{S}';", False),
        ("README.md", f"run with --password={S}", False),
        ("a.sql", f"IDENTIFIED BY '{S}'", True),
    ],
)
def test_lines_of_a_patch(path: str, line: str, kept: bool) -> None:
    patch = section(path, line)
    assert (mask_patch(patch) == patch) is kept
    if not kept:
        assert S.encode() not in mask_patch(patch)


@pytest.mark.slow
def test_it_takes_no_time(store: Store) -> None:
    """A megabyte in less than ten seconds of processor time, whatever is in it; it takes about a third of one."""
    import time

    for line in ("x" * 100, "a=" * 50, "password" * 12, "'" * 100, "https://" * 12, "-----BEGIN " * 9, "token: " * 14):
        began = time.process_time()
        mask_text(line * 10_000)
        mask_arguments((line * 1000,))
        assert time.process_time() - began < 10
