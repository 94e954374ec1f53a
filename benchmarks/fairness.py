"""What others notice of clients that take too much: `uv run benchmarks/fairness.py`.

- Round trips: a member of a large room asks for the users of an empty one, again and again, without
  and with clients that do something as fast as they can, or that do what no client should.
- Shutdown: SIGTERM comes while 20 clients ask for the users of the large room without a pause.
- Slow links: members that read slowly are sent the large messages of 1 member, and of 5.

The server has a CPU to itself. Whatever else the machine does adds to the times, so run it twice.
"""

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from threading import Thread

CPUS = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
HANDSHAKE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKE += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
PING, GOING_AWAY = b"\x89\0", b"\x88\2\3\xe9"  # frames of the server
LINKS = (100, 250, 500, 1000, 2000)  # KB a second


def frame(payload: bytes = b"", first: int = 0x81) -> bytes:
    """Return a frame, a text frame by default. A mask of zeros leaves the payload as it is."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([first]) + length + bytes(4) + payload


def request(action: str, **fields: str) -> bytes:
    """Return a request as a frame."""
    return frame(json.dumps({"action": action, **fields}).encode())


USER_LIST = request("user_list", room="default")
LARGE_MESSAGE = request("chat_message", message="x" * 60_000)
# What clients send without a pause, and how many do so. Those that send nothing reconnect.
ATTACKS = [
    ("talk", request("chat_message", message="x"), (1, 20)),
    ("change names", request("set_nick", nick="Amy") + request("set_nick", nick="Bob"), (1,)),
    ("change rooms", request("join_room", room="x") + request("join_room", room="default"), (1,)),
    ("list users", USER_LIST, (1, 20)),
    ("fragments", frame(first=0x01) + frame(first=0) * 200_000 + frame(first=0x80), (1, 5, 20)),
    ("pings", frame(first=0x89), (1, 5, 20)),
    ("tiny frames", frame(b"1"), (1, 5, 20)),
    ("reconnect", b"", (1, 20)),
]


def connect(port: int) -> socket.socket:
    """Return the socket of a client that has sent its handshake."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(HANDSHAKE)
    return client


def wait_for(client: socket.socket, action: bytes) -> None:
    """Read until a message with an action arrives."""
    data = b""
    while action not in data:
        if not (received := client.recv(64 * 1024)):
            raise ConnectionError("it has closed a connection")
        data = data[-len(action) :] + received


def read(client: socket.socket, size: int = 64 * 1024) -> bool:
    """Read once, answer pings and close frames; return whether the connection is still open."""
    try:
        data = client.recv(size)
        if PING in data:
            client.sendall(frame(first=0x8A))
        if GOING_AWAY in data:
            client.sendall(frame(GOING_AWAY[2:], first=0x88))
        return data != b""
    except OSError:
        return False


def read_all(client: socket.socket, rate: int = 0) -> None:
    """Read until the server closes the connection, at a rate in KB a second if there is one."""
    if rate:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    while read(client, rate * 20 or 64 * 1024):
        time.sleep(0.02 if rate else 0)


def attend(members: list[socket.socket]) -> None:
    """Read what members are sent."""
    selector = selectors.DefaultSelector()
    for member in members:
        selector.register(member, selectors.EVENT_READ, data=member)
    while True:
        for key, _ in selector.select():
            if not read(key.data):
                selector.unregister(key.data)


def misbehave(port: int, data: bytes) -> None:
    """Send something without a pause; connect again if the server closes the connection."""
    while True:
        with contextlib.suppress(OSError), connect(port) as client:
            wait_for(client, b"connecting")
            Thread(target=read_all, args=[client]).start()
            while data:
                client.sendall(data * (1 + 200_000 // len(data)))


@contextlib.contextmanager
def run(count: int, target: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run a function in processes of their own until the block ends."""
    children: list[int] = []
    try:
        for _ in range(count):
            children.append(os.fork())
            if not children[-1]:
                os.nice(10)  # the member that measures comes first
                target(*arguments)
        yield
    finally:
        if 0 in children:  # this is one of them
            os._exit(0)
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@contextlib.contextmanager
def serve(server: str, members: int = 0) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start a server, let members join, and yield its process and its port."""
    command = [sys.executable, server, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            os.sched_setaffinity(process.pid, CPUS[:1])
            assert process.stdout
            if not (found := re.search(rb"http://[0-9.]+:(\d+)", process.stdout.readline())):
                sys.exit(f"{server} does not start.")
            room: list[socket.socket] = []
            while len(room) < members:
                room.append(connect(int(found[1])))
                if len(room) % 100 == 0:  # the queue for handshakes is not much longer
                    wait_for(room[-1], b"connecting")
            with run(1, attend, room):
                yield process, int(found[1])
        finally:
            process.kill()


def time_requests(port: int, seconds: float) -> list[float]:
    """Return the median and the 99th percentile of a member's round trips, in milliseconds."""
    times = []
    with connect(port) as client:
        wait_for(client, b"connecting")
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            client.sendall(request("user_list", room="an empty room"))
            wait_for(client, b"user_list")
            times.append((time.perf_counter() - start) * 1000)
            time.sleep(0.01)
    times.sort()
    return [times[len(times) // 2], times[len(times) * 99 // 100]]


def try_links(server: str, count: int, seconds: float) -> None:
    """Show which links survive the large messages of some members."""
    with serve(server) as (_, port), run(count, misbehave, port, LARGE_MESSAGE):
        readers = {rate: Thread(target=read_all, args=[connect(port), rate]) for rate in LINKS}
        for reader in readers.values():
            reader.start()
        time.sleep(seconds)
        survivors = [rate for rate, reader in readers.items() if reader.is_alive()]
        print(f"Large messages of {count}: {survivors} survive, of {LINKS} KB a second.")


def main() -> None:
    """Measure and report, or say in a sentence why that can't be done."""
    parser = argparse.ArgumentParser(description="Measure what others notice of some clients.")
    parser.add_argument("--server", default="server.py", help="default: %(default)s")
    parser.add_argument("--members", default=2000, type=int, help="default: %(default)s")
    parser.add_argument("--seconds", default=3, type=float, help="default: %(default)s")
    server, members, seconds = vars(parser.parse_args()).values()
    if len(CPUS) < 2:
        sys.exit("This needs Linux and two CPUs: one for the server, one for its clients.")
    import resource  # there is none on Windows

    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    os.sched_setaffinity(0, CPUS[1:])
    try:
        print("Round trips in ms, without and with clients that ...  (median, 99 %, median, 99 %)")
        for name, data, counts in ATTACKS:
            for count in counts:
                with serve(server, members) as (_, port):
                    without = time_requests(port, seconds)
                    with run(count, misbehave, port, data):
                        times = without + time_requests(port, seconds)
                print(f"{count:2} {name:12}", *(f"{time:9.1f}" for time in times), flush=True)
        with serve(server, members) as (process, port), run(20, misbehave, port, USER_LIST):
            time.sleep(seconds)
            start = time.perf_counter()
            process.terminate()
            code = process.wait()
            print(f"Shutdown: exit code {code} after {time.perf_counter() - start:.1f} s.")
        for count in (1, 5):
            try_links(server, count, 20 * seconds)
    except OSError as error:
        sys.exit(f"{server} can't be measured: {error}.")


if __name__ == "__main__":
    main()
