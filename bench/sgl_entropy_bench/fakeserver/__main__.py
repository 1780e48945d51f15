"""``python -m sgl_entropy_bench.fakeserver --port P``: serve until a signal says to stop."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

from sgl_entropy_bench.fakeserver.routes import ApiConnection
from sgl_entropy_bench.fakeserver.service import Service
from sgl_entropy_bench.fakeserver.settings import FakeServerOptions, parse_options


async def serve(options: FakeServerOptions) -> int:
    """Serve until a signal, or the owner's end; returns the exit status."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    if options.owned:
        loop.add_reader(sys.stdin.fileno(), stopped.set)
    service = Service(options, loop)
    try:
        server = await loop.create_server(
            lambda: ApiConnection(service), "127.0.0.1", options.port, backlog=4096
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        print(f"fakeserver: cannot listen on port {options.port}: {reason}", file=sys.stderr)
        return 1
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await stopped.wait()
    server.close()
    for connection in list(service.connections):
        connection.abort()
    # The aborted connections are told in the loop's next round.
    await asyncio.sleep(0)
    return 0


def main() -> int:
    """Run the server; returns the exit status."""
    options = parse_options()
    # A load test may hold more connections than the usual limit of 1024 open files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return asyncio.run(serve(options))


if __name__ == "__main__":
    sys.exit(main())
