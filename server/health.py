"""Health check for containers: `python -m plait.server.health` asks whether the server is ready.

It finds the address by itself, since host and port may come from the command line, the environment
or a file. Standard library only: it runs every few seconds.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException

from plait.server.run_folder import running_addresses

TIMEOUT_S = 4.0
# A server that listens on all addresses is asked on the loopback one.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


def check(host: str, port: int) -> str:
    """Return why a server is not ready; an empty text if it is ready."""
    # http.client uses no proxy, whatever the environment says.
    connection = HTTPConnection(LOOPBACK.get(host, host), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return f"{host}:{port} does not answer: {error}"
    finally:
        connection.close()
    return "" if answer.status == 200 else f"{host}:{port} is not ready: {body}"


def main() -> int:
    """Return the exit code: 0 if this user runs servers here and all of them are ready."""
    addresses = running_addresses()
    faults = [fault for address in addresses if (fault := check(*address))]
    if not addresses:
        faults = ["no server of this user runs here"]
    sys.stdout.writelines(f"plait: {fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
