"""The conformance suite for triggers: declared, quick, without writes, and answered by a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from everloop.loop.triggers.trigger_protocol import Due, TriggerContext, check_trigger, trigger_name
from everloop.records import Run
from everloop.stores import SharedClock, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from everloop.loop.triggers.trigger_protocol import Trigger
    from everloop.records import Json
    from everloop.stores import Store

LOOP = "triggered"
STARTED = datetime(2024, 1, 1, tzinfo=UTC)


class TriggerSuite:
    """Derive from this class and define a fixture `part` that returns the trigger.

    Override `cause` so that it makes the trigger fire: it receives the store, whose clock stands `later` after the last
    run. Set `later` to a time that exceeds the trigger's cool-down.
    """

    later = timedelta(days=30)
    endpoint: str | None = "triggered"

    def cause(self, store: Store) -> None:
        """Do what makes the trigger fire. By default, only time passes."""

    @pytest.fixture
    def triggered(self, tmp_path: Path) -> Iterator[Store]:
        """A store on a simulated clock in which the loop has run once."""
        with open_store(tmp_path / "home", project=LOOP) as store:
            store.simulate(STARTED)
            yield store

    def test_it_is_a_trigger(self, part: Trigger) -> None:
        assert check_trigger(part, "The trigger") is part
        assert trigger_name(part)

    def test_it_can_be_printed(self, part: Trigger) -> None:
        assert type(part).__name__ in repr(part)

    def test_it_does_not_fire_right_after_a_run(self, part: Trigger, triggered: Store) -> None:
        run = self._run(part, triggered)
        assert part.check(self._context(part, triggered, run)) is None

    def test_it_fires_for_its_cause_and_says_why(self, part: Trigger, triggered: Store) -> None:
        due = self._fired(part, triggered)
        assert due.trigger == trigger_name(part)
        assert due.reason.strip()
        assert msgspec.json.decode(msgspec.json.encode(due.evidence)) == due.evidence

    def test_a_repeated_check_says_the_same_and_writes_nothing(self, part: Trigger, triggered: Store) -> None:
        """It keeps firing until a run has begun: a process may die between the check and the run."""
        run = self._run(part, triggered)
        self._pass_time(triggered)
        self.cause(triggered)
        before = triggered.records.last_event()
        first, again = (part.check(self._context(part, triggered, run)) for _ in range(2))
        assert first == again
        assert first is not None
        assert triggered.records.last_event() == before

    def test_a_run_answers_it(self, part: Trigger, triggered: Store) -> None:
        due = self._fired(part, triggered)
        answer = self._run(part, triggered, due)
        assert part.check(self._context(part, triggered, answer)) is None

    def _fired(self, part: Trigger, store: Store) -> Due:
        run = self._run(part, store)
        self._pass_time(store)
        self.cause(store)
        due = part.check(self._context(part, store, run))
        assert isinstance(due, Due)
        return due

    def _run(self, part: Trigger, store: Store, due: Due | None = None) -> Run:
        """A run that begins now, with the trigger's mark."""
        run = store.new(Run, name=LOOP, loop=LOOP, state="finished", started_at=store.now())
        mark: Json = None
        if hasattr(part, "mark"):
            mark = part.mark(self._context(part, store, run))
        cause = {**(due.to_dict() if due is not None else {}), "marks": {trigger_name(part): mark}}
        run = replace(run, cause=cause)
        store.records.put(run)
        return run

    def _context(self, part: Trigger, store: Store, last: Run) -> TriggerContext:
        marks = last.cause.get("marks", {})
        name = trigger_name(part)
        return TriggerContext(store, LOOP, LOOP, self.endpoint, last, name, marks.get(name), list)

    def _pass_time(self, store: Store) -> None:
        assert isinstance(store.clock, SharedClock)
        store.clock.set(store.now() + self.later)
