"""`python -m everloop.serving NAME --home DIR --port P`: the process of one endpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from everloop.errors import EverloopError


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal. The exit status is that of the error, or 0 after a requested stop."""
    parser = argparse.ArgumentParser(prog="python -m everloop.serving", description=__doc__)
    parser.add_argument("name", help="name of the endpoint")
    parser.add_argument("--home", help="folder of the store; default: EVERLOOP_STORE, everloop.toml or .everloop")
    parser.add_argument("--project")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 picks a free one")
    parser.add_argument(
        "--port-file", help="file that receives port, process id and URL as JSON once the endpoint answers"
    )
    parser.add_argument("--parent", type=int, help="id of the parent process; stop when it has ended")
    parser.add_argument("--workers", type=int, default=1, help="number of processes that share the port")
    parser.add_argument(
        "--grpc-port", type=int, help="port for the Open Inference Protocol over gRPC; 0 picks a free one"
    )
    parser.add_argument(
        "--log-requests", choices=("json", "text"), help="log each request to standard error in this format"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], help="a further host name to accept; can be repeated"
    )
    parser.add_argument("--contained", action="store_true", help="it runs in a container and needs no token")
    parser.add_argument("--lease", help="the parent's lease of this endpoint; without it, nothing fences its state")
    parser.add_argument("--fence", type=int, help="the fencing number of the lease")
    parser.add_argument("--listener", type=int, help="file descriptor of a socket inherited from the parent process")
    options = parser.parse_args(arguments)
    from everloop.serving.endpoint_server import serve_endpoint, serve_listener
    from everloop.serving.observability.telemetry import write_requests
    from everloop.serving.worker_processes import WorkerIdentity

    if options.log_requests is not None:
        write_requests(options.log_requests)
    try:
        if options.listener is not None:
            identity = WorkerIdentity(
                options.host, options.grpc_port, options.workers, tuple(options.allowed_host), options.contained
            )
            ready_file = Path(options.port_file)
            serve_listener(
                options.name,
                options.home,
                options.listener,
                identity,
                project=options.project,
                port_file=ready_file,
                parent=options.parent,
            )
            return 0
        serve_endpoint(
            options.name,
            options.home,
            options.host,
            options.port,
            project=options.project,
            port_file=options.port_file,
            parent=options.parent,
            workers=options.workers,
            grpc_port=options.grpc_port,
            allowed_hosts=options.allowed_host,
            lease=None if options.lease is None else (options.lease, options.fence or 0),
        )
    except EverloopError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
