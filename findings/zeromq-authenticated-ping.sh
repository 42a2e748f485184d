#!/usr/bin/env bash
# A socket whose peers are authenticated (ZAP) and that pings them (ZMQ_HEARTBEAT_IVL) says that it
# can be read when there is nothing to read: if a ping is the first thing that a new peer sends.
#
# One would expect ZMQ_POLLIN to mean a message, and an awaited recv() of pyzmq's asyncio sockets
# never to raise zmq.Again, which stands for "would block". Each of the two options works alone.
#
# It matters because it depends on timing: a peer that speaks at once never shows it, one that takes
# longer than the heartbeat's interval for its first message always does, and the error ends
# whatever task was waiting. Catching zmq.Again and waiting again is enough: it happens once a peer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyzmq==27.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator


async def first_of(has_authentication: bool, has_pings: bool) -> str:
    context = zmq.asyncio.Context()
    server, client = context.socket(zmq.PAIR), zmq.Context().socket(zmq.PAIR)
    public, secret = zmq.curve_keypair()
    authenticator = AsyncioAuthenticator(context)
    if has_authentication:
        authenticator.start()
        authenticator.configure_curve(domain="*", location=zmq.auth.CURVE_ALLOW_ANY)
    server.curve_server, server.curve_secretkey = True, secret
    client.curve_serverkey = public
    client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    for socket in (server, client):
        socket.linger = 0
        if has_pings:
            socket.set(zmq.HEARTBEAT_IVL, 50)
    client.connect(f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}")
    try:
        await asyncio.wait_for(server.recv(), 1.0)  # the client never sends anything
        return "a message"
    except TimeoutError:
        return "nothing"
    except zmq.Again:
        return "zmq.Again"
    finally:
        if has_authentication:
            authenticator.stop()
        client.close()
        server.close()


print("pyzmq", zmq.__version__, "libzmq", zmq.zmq_version())
seen = {}
for has_authentication in (False, True):
    for has_pings in (False, True):
        seen[has_authentication, has_pings] = asyncio.run(first_of(has_authentication, has_pings))
        print(f"authentication {has_authentication!s:5} pings {has_pings!s:5}: recv() gave "
              f"{seen[has_authentication, has_pings]} from a peer that sent nothing")
wanted = {(False, False): "nothing", (False, True): "nothing", (True, False): "nothing", (True, True): "zmq.Again"}
raise SystemExit(seen != wanted)
PYTHON
