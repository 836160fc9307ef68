"""`python -m everloop.serving NAME --home DIR --port P`: the process of one endpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from everloop.errors import EverloopError


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; the exit status is the error's, 0 after a stop that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m everloop.serving", description=__doc__)
    parser.add_argument("name", help="the endpoint")
    parser.add_argument("--home", help="the store; default: as everywhere")
    parser.add_argument("--project")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", help="gets port, process id and URL as JSON once the endpoint answers")
    parser.add_argument("--with-parent", action="store_true", help="stop when the parent process is gone")
    parser.add_argument("--workers", type=int, default=1, help="processes that answer, on one port")
    parser.add_argument("--grpc-port", type=int, help="the Open Inference Protocol over gRPC; 0 takes a free one")
    parser.add_argument("--log-requests", choices=("json", "text"), help="write a line for each request to stderr")
    parser.add_argument("--allowed-host", action="append", default=[], help="a further name to be addressed by")
    parser.add_argument("--contained", action="store_true", help="it listens in a container, without a token")
    parser.add_argument("--listener", type=int, help="file number of a socket to share, given by the parent process")
    given = parser.parse_args(arguments)
    from everloop.serving.endpoint_server import serve_endpoint, serve_listener
    from everloop.serving.observability.telemetry import write_requests
    from everloop.serving.worker_processes import WorkerIdentity

    if given.log_requests is not None:
        write_requests(given.log_requests)
    try:
        if given.listener is not None:
            place = WorkerIdentity(
                given.host, given.grpc_port, given.workers, tuple(given.allowed_host), given.contained
            )
            said = Path(given.port_file)
            serve_listener(given.name, given.home, given.listener, place, project=given.project, port_file=said)
            return 0
        serve_endpoint(
            given.name,
            given.home,
            given.host,
            given.port,
            project=given.project,
            port_file=given.port_file,
            with_parent=given.with_parent,
            workers=given.workers,
            grpc_port=given.grpc_port,
            allowed_hosts=given.allowed_host,
        )
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
