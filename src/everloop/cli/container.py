"""The entry point of an image of everloop: `serve` and `train`, as hosting platforms start it.

    serve   port: $AIP_HTTP_PORT, $SAGEMAKER_BIND_TO_PORT, $PORT, else 8080
            model: the first package found in /opt/ml/model (SageMaker), $AIP_STORAGE_URI (Vertex AI),
            $AZUREML_MODEL_DIR (Azure ML), /mnt/models (KServe), or the image itself
            log: $EVERLOOP_STORE, a mounted folder, a bucket or a PostgreSQL database that receives every prediction;
            `serve` refuses to start without it, unless $EVERLOOP_LOG or --log is `none`
            endpoint: $EVERLOOP_ENDPOINT, [PROJECT/]NAME, under which predictions are logged
    train   channels: /opt/ml/input/data/<channel>/ (SageMaker), $AIP_TRAINING_DATA_URI and $AIP_VALIDATION_DATA_URI
            (Vertex AI), --train and --valid; hyperparameters: /opt/ml/input/config/hyperparameters.json, --set
            model: /opt/ml/model, and $AIP_MODEL_DIR; reason of a failure: /opt/ml/output/failure

`$EVERLOOP_CONTAINER_ROOT` replaces `/`. `everloop.deploy` does the work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Return the error's exit code, or 0 after a normal end or a requested stop."""
    parser = argparse.ArgumentParser(prog="everloop.cli.container", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve")
    serve.add_argument("--http_port", "--port", type=int, help="Port to listen on; overrides the environment.")
    serve.add_argument("--model_name", default=os.environ.get("EVERLOOP_MODEL"))
    serve.add_argument("--host", default=os.environ.get("EVERLOOP_HOST", "0.0.0.0"))  # noqa: S104 - a container's
    serve.add_argument("--workers", type=int, default=int(os.environ.get("EVERLOOP_WORKERS", "1")))
    serve.add_argument("--log", help="Store of the prediction log, or 'none'; overrides the environment.")
    serve.add_argument(
        "--endpoint", default=os.environ.get("EVERLOOP_ENDPOINT"), help="[PROJECT/]NAME in the prediction log."
    )
    train = commands.add_parser("train")
    train.add_argument("--train", help="Files with training rows.")
    train.add_argument("--valid", help="Files with validation rows.")
    train.add_argument("--model", help="Folder for the package.")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="A hyperparameter.")
    options = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="everloop-"))
    try:
        from everloop.deploy.image_environment import use_image_keys

        use_image_keys(work)
        _serve(work, options) if options.command == "serve" else _train(work, options)
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _serve(work: Path, options: argparse.Namespace) -> None:
    from everloop.deploy.image_serving import serve_image

    serve_image(
        work,
        report=_report,
        host=options.host,
        port=options.http_port,
        workers=options.workers,
        log=options.log,
        endpoint=options.endpoint,
        model=options.model_name,
    )


def _train(work: Path, options: argparse.Namespace) -> None:
    from everloop.deploy.image_training import train_image

    metrics = train_image(
        work,
        report=_report,
        train=options.train,
        valid=options.valid,
        model=options.model,
        settings=options.set,
    )
    for name, value in sorted(metrics.items()):
        # One line each, so that the platforms' regular expressions find them.
        sys.stdout.write(f"{name}={value:.6g}\n")
    sys.stdout.flush()


def _report(text: str) -> None:
    sys.stderr.write(text)


if __name__ == "__main__":
    sys.exit(main())
