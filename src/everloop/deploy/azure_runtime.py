"""The code behind `score.py` on Azure ML's own inference server: it scores requests and logs the predictions.

As in an image (`everloop.deploy.image_serving`), EVERLOOP_STORE is where the log is shipped, and EVERLOOP_LOG=none
turns it off; without either `init` fails. EVERLOOP_ENDPOINT is `[PROJECT/]NAME`. With `none` every response has the
header `X-Everloop-Log: none`.
"""

from __future__ import annotations

import atexit
import logging
import os
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from everloop.deploy.azure_ml import AzureScoring, deployed_package
from everloop.errors import EverloopError, RequestError
from everloop.prediction_log.log_sinks import VARIABLE, NoSink, choose_log_url, log_of, make_own_folder
from everloop.prediction_log.prediction_log import PREDICTIONS, Group, PredictionLog, label_text, stream_of
from everloop.prediction_log.segment_stores import open_segments
from everloop.prediction_log.segments import shown
from everloop.prediction_log.shipping import ShippingSink
from everloop.stores.clock import SystemClock, micros, new_id

if TYPE_CHECKING:
    from pathlib import Path

    from everloop.packages.predictor import Predictor

logger = logging.getLogger("everloop.serving")


class LoggedScoring(AzureScoring):
    """A loaded package that logs each prediction before it returns the response."""

    def __init__(self, predictor: Predictor, version: str = "", log: PredictionLog | None = None) -> None:
        super().__init__(predictor)
        self._version = version
        self._log = log or PredictionLog(None, "", NoSink())
        self._clock = SystemClock()
        signature = predictor.signature
        self._inputs = msgspec.Raw(msgspec.msgpack.encode({item.name: item.type for item in signature.inputs}))

    @classmethod
    def start(cls, script_folder: Path) -> LoggedScoring:
        """Load the package as `AzureScoring.start` does, and open its log.

        Raises:
            UsageError: the environment configures no log, or its settings are invalid.
            UnavailableError: the log's store does not respond or is not writable.
            NotFoundError, CorruptionError, TrustError: as `AzureScoring.start`.
        """
        os.environ[VARIABLE] = choose_log_url(os.environ)
        predictor = AzureScoring.start(script_folder).predictor
        version = _version_in(script_folder, predictor)
        found = log_of(os.environ)
        if found is None or isinstance(found, str):
            logger.warning("everloop log: none. Predictions are not logged; every response says so in X-Everloop-Log.")
            return cls(predictor, version)
        project, _, name = os.environ.get("EVERLOOP_ENDPOINT", "").rpartition("/")
        stream = stream_of(project or "default", PREDICTIONS, name or version.replace("@", "-").replace(".", "-"))
        make_own_folder(found.folder)
        open_segments(found.where).check()
        log = PredictionLog(None, "", ShippingSink(found, stream))
        atexit.register(log.close)
        logger.warning("everloop log: %s, as %s.", shown(found.where), stream)
        return cls(predictor, version, log)

    @property
    def kind(self) -> str:
        """`store` or `none`."""
        return self._log.sink.kind

    def answer(self, raw: str | bytes) -> dict[str, Any]:
        """Answer a body as `AzureScoring.answer` does, once its predictions are logged.

        Raises:
            RequestError: the body does not match the signature; nothing was logged.
            InsufficientStorageError, UnavailableError: the predictions could not be logged, so they are not returned.
        """
        began = perf_counter()
        now = self._clock.now()
        rows = self.rows_of(raw)
        answer = self.answer_rows(rows)
        if self.kind != "none":
            names = self.predictor.signature.names
            binary = "probabilities" in answer
            group = Group(
                request=new_id(now),
                arrived=micros(now),
                seconds=perf_counter() - began,
                version=self._version,
                role="champion",
                inputs=self._inputs,
                positions=None,
                entities=None,
                events=None,
                scores=answer["probabilities" if binary else "predictions"],
                labels=[label_text(label) for label in answer["predictions"]] if binary else None,
                rows=[tuple(row[name] for name in names) for row in rows],
                package=self.predictor.digest,
            )
            self._log.append([group])
        return answer


def respond(scoring: LoggedScoring, raw_data: Any) -> Any:
    """Return what `run` returns: the predictions, or Azure's response object with the error's status."""
    headers = {"X-Everloop-Log": "none"} if scoring.kind == "none" else {}
    try:
        answer = scoring.answer(raw_data)
    except RequestError as error:
        return _response({"error": str(error)}, 400, headers)
    except EverloopError as error:
        if error.http_status not in (503, 507):
            raise
        return _response({"error": str(error)}, error.http_status, headers)
    return _response(answer, 200, headers) if headers else answer


def _response(body: Any, status: int, headers: dict[str, str]) -> Any:
    # Only Microsoft's server has this package installed.
    response = import_module("azureml_inference_server_http.api.aml_response").AMLResponse
    return response(body, status, headers, json_str=True)


def _version_in(script_folder: Path, predictor: Predictor) -> str:
    """Return the version named in the package's signature, or its digest."""
    from everloop.packages.archive import open_archive

    package = deployed_package(script_folder)
    signature = open_archive(package)[2] if package is not None else {}
    return str(signature.get("version") or predictor.digest or "model")


__all__ = ["LoggedScoring", "respond"]
