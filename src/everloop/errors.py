"""Every error that everloop raises on purpose.

    EverloopError                 exit 1   HTTP 500
    ├── UsageError                exit 2   400   a command or a call was given something it cannot use
    │   └── MissingExtraError     exit 2   501   an optional dependency is not installed
    ├── ProjectError              exit 2   400   loop.py is missing, broken or declares nothing
    ├── NotFoundError             exit 3   404   no such run, version, snapshot, …
    ├── AlreadyExistsError        exit 4   409
    ├── ConflictError             exit 4   409   someone else changed it first
    ├── TrustError                exit 5   403   code-bearing bytes without a trusted signature
    ├── DataError                 exit 6   422
    │   ├── SourceError           exit 6   422   a file, table or address cannot be read as declared
    │   ├── ContractError         exit 6   422   rows break the contract
    │   └── EmptySampleError      exit 6   422   a statistic was asked of no rows
    ├── GraphError                exit 2   400   a cycle, an unknown input, two steps of one name
    ├── StepError                 exit 7   500   the user's step failed
    │   ├── StepTimeoutError      exit 7   504
    │   ├── StepOutputError       exit 7   500   it returned something other than it declared
    │   └── WorkerLostError       exit 7   500   its process died
    ├── TrainingError             exit 8   422   no model can be made of this data
    ├── ParityError               exit 8   422   a package does not answer as its model does
    ├── RequestError              exit 2   422   a prediction request breaks the signature
    │   └── TooLargeError             exit 2   413   it is too large once it is unpacked
    ├── UnavailableError          exit 9   503   an endpoint or store does not answer now
    │   └── DeadlineError         exit 9   504   the time of a request ran out before its answer was there
    └── StoreError                exit 10  500
        ├── CorruptionError       exit 10  500   bytes differ from their digest
        ├── StoreVersionError     exit 10  500   the store was written by a newer everloop
        ├── InsufficientStorageError  exit 10  507   the disk or quota that the store writes to is full
        └── ReadOnlyError         exit 10  409   a store opened as of a moment takes no writes

A message says what happened with the value, what exists instead, and the command that helps.
"""

from __future__ import annotations

from typing import ClassVar


class EverloopError(Exception):
    """Root of the tree. `help` names the command or the change that leads out.

    `option_help` says the same to somebody who typed a command that takes options, where `help` names an argument of
    a Python function. Such a command shows it in place of `help`.
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
        # Errors cross process borders; the default reduce would lose `help`.
        return _rebuild, (type(self), self.message, self.help, self.option_help)


def _rebuild(cls: type[EverloopError], message: str, help: str | None, option_help: str | None = None) -> EverloopError:
    return cls(message, help=help, option_help=option_help)


class UsageError(EverloopError):
    exit_code, http_status = 2, 400


class MissingExtraError(UsageError):
    """Something needs an optional dependency that is not installed."""

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
    """A request becomes too large when it is unpacked, or holds a row that is too long for the log."""

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
