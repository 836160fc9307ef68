"""Names and URLs of executors, on the command line and in everloop.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from everloop.errors import ProjectError, UsageError
from everloop.pipeline.executors.executor_choice import check_executor, configured_executor, load_executor
from everloop.pipeline.executors.inline import InlineExecutor
from everloop.pipeline.executors.pool import PoolExecutor
from everloop.pipeline.executors.ray import RayExecutor

if TYPE_CHECKING:
    from pathlib import Path


def test_names_stand_for_executors() -> None:
    assert isinstance(load_executor("local"), InlineExecutor)
    assert isinstance(load_executor("inline"), InlineExecutor)
    assert isinstance(load_executor("pool"), PoolExecutor)
    for name, address in (("ray", ""), ("ray://10.0.0.5:6379", "10.0.0.5:6379"), ("ray://[::1]:6379", "[::1]:6379")):
        made = load_executor(name)
        assert isinstance(made, RayExecutor)
        assert made.address == address


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("slurm", "'slurm' is unknown"),
        ("", "'' is unknown"),
        ("pool://x", "which 'pool' does not take"),
        ("local://x", "which 'local' does not take"),
        ("ray://", "has no address"),
        ("Ray", "'Ray' is unknown"),
    ],
)
def test_other_names_are_refused_with_the_choice(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_executor(name)


@pytest.mark.parametrize("address", ["a b:1", "host:port", "host:1:2", "http://x", "user:pw@host:1", "host:6379/x"])
def test_malformed_addresses_are_refused_before_anything_starts(address: str) -> None:
    with pytest.raises(UsageError, match="not the address of a Ray cluster"):
        RayExecutor(f"ray://{address}")


def test_a_project_sets_its_executor(tmp_path: Path) -> None:
    config = tmp_path / "everloop.toml"
    assert configured_executor(tmp_path) == "local"
    config.write_text('executor = "ray://10.0.0.5:6379"\n[store]\nhome = "x"\n')
    assert configured_executor(tmp_path) == "ray://10.0.0.5:6379"
    config.write_text("executor = 3\n")
    with pytest.raises(ProjectError, match=r"'executor' in .* is not a string"):
        configured_executor(tmp_path)
    config.write_text('executor = "slurm"\n')
    with pytest.raises(UsageError, match=r"everloop\.toml' 'slurm' is unknown"):
        configured_executor(tmp_path)
