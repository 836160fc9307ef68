"""The exceptions that everloop raises.

    EverloopError                 exit 1   HTTP 500
    ├── UsageError                exit 2   400   an invalid argument or option
    │   └── MissingExtraError     exit 2   501   an optional dependency is not installed
    ├── ProjectError              exit 2   400   loop.py is missing, broken or declares nothing
    ├── NotFoundError             exit 3   404   no such run, version, snapshot, …
    ├── AlreadyExistsError        exit 4   409
    ├── ConflictError             exit 4   409   another process changed it first
    ├── LeaseLostError            exit 4   409   this process stopped renewing its lease, and another may hold it now
    ├── TrustError                exit 5   403   bytes that contain code have no trusted signature
    ├── DataError                 exit 6   422
    │   ├── SourceError           exit 6   422   a file, table or URL cannot be read as declared
    │   ├── ContractError         exit 6   422   rows break the contract
    │   └── EmptySampleError      exit 6   422   a statistic of zero rows
    ├── GraphError                exit 2   400   a cycle, an unknown input, two steps with the same name
    ├── StepError                 exit 7   500   the user's step failed
    │   ├── StepTimeoutError      exit 7   504
    │   ├── StepOutputError       exit 7   500   it returned something other than it declared
    │   └── WorkerLostError       exit 7   500   its process died
    ├── TrainingError             exit 8   422   no model can be trained on this data
    ├── ParityError               exit 8   422   a package and its model give different predictions
    ├── RequestError              exit 2   422   a prediction request breaks the signature
    │   └── TooLargeError             exit 2   413   it is too large once it is unpacked
    ├── UnavailableError          exit 9   503   an endpoint or store is not responding right now
    │   └── DeadlineError         exit 9   504   a request's time ran out before the response was ready
    └── StoreError                exit 10  500
        ├── CorruptionError       exit 10  500   bytes differ from their digest
        ├── StoreVersionError     exit 10  500   the store was written by a newer everloop
        ├── InsufficientStorageError  exit 10  507   the disk or quota that the store writes to is full
        └── ReadOnlyError         exit 10  409   the store is a view of the past, or read-only for this user

A message says what happened, with the value; what was expected or exists instead; and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class EverloopError(Exception):
    """Base class of all exceptions here. `help` names the command or change that solves the problem.

    If `help` names an argument of a Python function, `option_help` gives the same advice with the command-line option.
    Commands that have this option show it instead of `help`.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, help: str | None = None, option_help: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.help = help
        self.option_help = option_help

    def __str__(self) -> str:
        return f"{self.message} {self.help}" if self.help else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between processes; the default `__reduce__` would lose `help`.
        return _rebuild, (type(self), self.message, self.help, self.option_help)


def _rebuild(cls: type[EverloopError], message: str, help: str | None, option_help: str | None = None) -> EverloopError:
    return cls(message, help=help, option_help=option_help)


class UsageError(EverloopError):
    exit_code, http_status = 2, 400


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    http_status = 501

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> MissingExtraError:
        return cls(f"{what} needs {package}.", help=f"Install it with: pip install 'everloop[{extra}]'")


class ProjectError(EverloopError):
    exit_code, http_status = 2, 400


class NotFoundError(EverloopError):
    exit_code, http_status = 3, 404


class AlreadyExistsError(EverloopError):
    exit_code, http_status = 4, 409


class ConflictError(EverloopError):
    exit_code, http_status = 4, 409


class LeaseLostError(EverloopError):
    """The work belongs to another process now. What this one has not written yet must not be written.

    It is not a conflict that could be solved by reading the record again.
    """

    exit_code, http_status = 4, 409


class TrustError(EverloopError):
    exit_code, http_status = 5, 403


class DataError(EverloopError):
    exit_code, http_status = 6, 422


class SourceError(DataError):
    pass


class ContractError(DataError):
    pass


class EmptySampleError(DataError):
    pass


class GraphError(EverloopError):
    exit_code, http_status = 2, 400


class StepError(EverloopError):
    exit_code = 7


class StepTimeoutError(StepError):
    http_status = 504


class StepOutputError(StepError):
    pass


class WorkerLostError(StepError):
    pass


class TrainingError(EverloopError):
    exit_code, http_status = 8, 422


class ParityError(EverloopError):
    exit_code, http_status = 8, 422


class RequestError(EverloopError):
    exit_code, http_status = 2, 422


class TooLargeError(RequestError):
    """A request is too large once it is unpacked, or has a row that is too long for the prediction log."""

    http_status = 413


class UnavailableError(EverloopError):
    exit_code, http_status = 9, 503


class DeadlineError(UnavailableError):
    http_status = 504


class StoreError(EverloopError):
    exit_code = 10


class CorruptionError(StoreError):
    pass


class StoreVersionError(StoreError):
    pass


class InsufficientStorageError(StoreError):
    """The disk or quota that the store writes to is full."""

    http_status = 507


class ReadOnlyError(StoreError):
    http_status = 409
