from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from everloop.errors import UsageError

if TYPE_CHECKING:
    from everloop.stores import Store


def test_a_lock_keeps_others_out_until_it_is_left(store: Store) -> None:
    with store.lock("train") as held:
        assert held
        assert store.locked("train")
        assert not store.locked("serve")
        with store.lock("train", block=False) as second:
            assert not second
        with store.lock("serve", block=False) as other:
            assert other
    assert not store.locked("train")
    with store.lock("train", block=False) as again:
        assert again


def test_a_waiting_lock_is_acquired_later(store: Store) -> None:
    got = threading.Event()

    def wait() -> None:
        with store.lock("train") as held:
            assert held
            got.set()

    with store.lock("train"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.05)
    assert got.wait(10)
    thread.join()


def test_a_lock_is_left_when_its_block_fails(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("train"):
        raise ZeroDivisionError
    assert not store.locked("train")


def test_the_lock_of_a_killed_process_is_free(store: Store) -> None:
    program = (
        "import sys, time\n"
        "from everloop.stores import open_store\n"
        "with open_store(sys.argv[1]).lock('run-1'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(store.home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert store.locked("run-1")
        holder.kill()
        holder.wait()
    assert not store.locked("run-1")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 300])
def test_invalid_lock_names(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="not a valid name"):
        store.lock(name)


def test_checking_a_lock_creates_no_file(store: Store) -> None:
    assert not store.locked("nobody")
    assert not Path(store.home / "locks" / "nobody.lock").exists()
