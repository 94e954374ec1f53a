"""What a delivered message costs here and elsewhere: `uv run --group bench benchmarks/fan_out.py`.

One member of a full room says something, all others hear it, and then the next message follows. These servers take
turns, each as a process of its own. All speak the part of the protocol that this needs, and the sender's answer comes
last. All decode a request and encode a broadcast once, not once a member.

- server.py: the server of this project.
- websockets: that library's own broadcast(), with compression=None, so that like is compared with like. It does not
  bound what a slow member leaves unread; it drops those that don't answer its pings.
- websockets-deflate: the same, as the library comes: it compresses a message for each member that offers to.
- floor: the least that Python can do. It builds a frame once and writes it to each transport. It checks nothing, bounds
  nothing, pings nobody, and takes it for granted that a request arrives in one piece.
- aiohttp-echo: the shortest JSON echo that aiohttp allows, with its defaults. It is what /echo is compared with.

CPU time is the user and system time of the server's process. Deliveries a second are counted while the server works:
from a request until its answer; the load reads the members' frames after that. Memory is what the process has grown by
(resident), for each member after the first, when all has been said. The members of a room offer permessage-deflate, as
browsers do; the clients of an echo don't.
"""

import argparse
import asyncio
import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HOST = "127.0.0.1"
TIMEOUT = 20.0  # seconds that a frame may take to arrive
OURS, WEBSOCKETS, DEFLATE, FLOOR, ECHO = "server.py", "websockets", "websockets-deflate", "floor", "aiohttp-echo"
# By chance, the C library of a process may give memory back to the system after each read and take it again for the
# next one, which can double the costs. These settings keep it from doing so, for all servers alike.
STEADY_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(64 * 1024**2), "MALLOC_MMAP_THRESHOLD_": str(1024**2)}
FLAT = [100, 500, 2000]  # members whose costs are compared
ECHO_CLIENTS = 20  # with just one, the costs would be those of falling asleep and waking up
TEXT = "does anybody know how many of us can talk in one room before it takes too long"
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


class Failure(Exception):
    """There is nothing to measure; the text is a sentence that says why."""


# The load. It looks at every single frame, and takes its time: the server waits for the next message meanwhile.


class Member:
    """Somebody who is connected to a server."""

    def __init__(self, port: int, path: str, offer: str = "") -> None:
        self.socket = socket.create_connection((HOST, port), TIMEOUT)
        self.reader = self.socket.makefile("rb")
        self.compressed = False
        handshake = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        handshake += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n{offer}\r\n"
        self.socket.sendall(handshake.encode())
        if b" 101 " not in self.reader.readline():
            raise Failure("The server refuses a handshake.")
        while line := self.reader.readline().strip():
            self.compressed |= b"permessage-deflate" in line

    def send(self, body: object) -> None:
        """Send a body, as JSON."""
        # All zeros are a mask, too, and spare us the masking; the server can't know, and unmasks.
        self.socket.sendall(frame(json.dumps(body).encode(), mask=bytes(4)))

    def hear(self) -> bytes:
        """Return the payload of the next frame, compressed or not."""
        while True:
            opcode, length = self.read(2)
            if length == 126:
                (length,) = struct.unpack("!H", self.read(2))
            payload = self.read(length)
            if opcode & 15 != 9:
                return payload
            self.socket.sendall(frame(payload, mask=bytes(4), opcode=10))  # who does not answer a ping is dropped

    def hear_about(self, text: str) -> None:
        """Hear the next frame; raise Failure if it does not hold a text. Compressed ones are only counted."""
        if text.encode() not in (heard := self.hear()) and not self.compressed:
            raise Failure(f"The server sends {heard!r} where {text!r} is due.")

    def read(self, count: int) -> bytes:
        """Return the next bytes from the server."""
        try:
            data = self.reader.read(count)
        except TimeoutError:
            raise Failure(f"The server delivers too little: a member waited {TIMEOUT:g} seconds for a frame.") from None
        if len(data) < count:
            raise Failure("The server ends a connection.")
        return data

    def close(self) -> None:
        """Break the connection."""
        self.reader.close()
        self.socket.close()


class Crowd:
    """The members of one room; the first of them does the talking."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self.port = port
        self.stack = stack
        self.members: list[Member] = []

    def join(self, count: int) -> None:
        """Let members in, up to this count, and let all hear of it."""
        # In groups: 2,000 members hear two million times that somebody joined, and one read can take many frames.
        while (present := len(self.members)) < count:
            newcomers = range(present, min(present + 50, count))
            for _ in newcomers:
                self.members.append(Member(self.port, "/chat", OFFER))
                self.stack.callback(self.members[-1].close)
                self.members[-1].hear_about("connecting")
            for index, member in enumerate(self.members):
                for _ in range(max(present, index + 1), len(self.members)):
                    member.hear_about("joined")

    def say(self, number: int) -> float:
        """Let the first member say something that all others hear; return the seconds until it has its answer."""
        sender, *others = self.members
        words = TEXT.split()
        random.shuffle(words)  # no news at all would be too easy to compress
        text = f"{number:06} {' '.join(words)}"
        start = time.perf_counter()
        sender.send({"action": "chat_message", "message": text})
        sender.hear_about(text)
        seconds = time.perf_counter() - start
        for member in others:
            member.hear_about(text)
        return seconds


# The measuring.


class Cost(NamedTuple):
    """What a server needs for one delivery, and how fast and large it is."""

    microseconds: float  # of CPU time
    rate: float  # deliveries a second
    kibibytes: float  # a member


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """Start a server, yield its process id and its port, and end it."""
    ours = [str(Path(__file__).parent.parent / "server.py"), "--host", HOST, "--port", "0"]
    command = [sys.executable, *(ours if name == OURS else [__file__, "--serve", name])]
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # one between start and `try` would leave the process behind
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | STEADY_MEMORY,
        preexec_fn=functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, signals),  # else it inherits that
    ) as process:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            assert process.stdout
            found = re.search(rf"http://{HOST}:(\d+)", process.stdout.readline())
            if not found:
                raise Failure(f"{name} does not start; `python {' '.join(command[1:])}` says why.")
            yield process.pid, int(found[1])
        finally:
            process.kill()  # a shutdown in good order would take seconds, and is not what is measured


def cpu_time(process_id: int) -> float:
    """Return the CPU time, user and system, that a process has used, in seconds."""
    return time.clock_gettime(~process_id << 3 | 2)  # how Linux numbers the CPU clocks of processes


def memory(process_id: int) -> float:
    """Return the resident memory of a process in KiB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def measure_chat(name: str, members: int, messages: int) -> Cost:
    """Let a server deliver messages to all members but the one that sends them."""
    with running(name) as (process_id, port), ExitStack() as stack:
        crowd = Crowd(port, stack)
        crowd.join(1)
        crowd.say(0)
        memory_before = memory(process_id)
        crowd.join(members)
        crowd.say(0)  # what happens only once is no part of the costs
        cpu_before = cpu_time(process_id)
        seconds = sum(crowd.say(number) for number in range(1, messages + 1))
        cpu = cpu_time(process_id) - cpu_before
        deliveries = messages * (members - 1)
        grown = memory(process_id) - memory_before
        return Cost(cpu / deliveries * 1e6, deliveries / seconds, grown / (members - 1))


def measure_echo(name: str, messages: int) -> float:
    """Let a server echo messages to some clients at once; return the CPU time of one echo in microseconds."""
    with running(name) as (process_id, port), ExitStack() as stack:
        clients = [Member(port, "/echo") for _ in range(ECHO_CLIENTS)]
        for client in clients:
            stack.callback(client.close)
        for number in range(2 * messages):
            if number == messages:  # the first half is to warm up
                before = cpu_time(process_id)
            text = f"{number:06} {TEXT}"
            for client in clients:
                client.send(text)
            for client in reversed(clients):  # the last answer first, so as to sleep once and not once an answer
                client.hear_about(text)
        return (cpu_time(process_id) - before) / messages / ECHO_CLIENTS * 1e6


def run(members: int, messages: int, rounds: int, flat: Sequence[int]) -> None:
    """Measure everything in turn, as many times as there are rounds, and report the cheapest of each.

    Whatever else the machine does can only add to the costs, so the lowest are the nearest to the truth.
    """
    raise_file_limit(max(members, *flat, ECHO_CLIENTS) + 100)
    chats: dict[str, list[Cost]] = {name: [] for name in (OURS, WEBSOCKETS, DEFLATE, FLOOR)}
    echoes: dict[str, list[float]] = {name: [] for name in (OURS, ECHO)}
    rooms: dict[int, list[tuple[float, float]]] = {count: [] for count in flat}
    for number in range(1, rounds + 1):
        print(f"Round {number} of {rounds} ...", file=sys.stderr, flush=True)
        for name, costs in chats.items():
            costs.append(measure_chat(name, members, messages))
        for name, times in echoes.items():
            times.append(measure_echo(name, messages))
        for count, pairs in rooms.items():
            # As many deliveries as above, whatever the count. The machine has its part in what a large room costs, and
            # the floor shows how much that is.
            some = max(1, messages * members // count)
            ours, floor = (measure_chat(name, count, some).microseconds for name in (OURS, FLOOR))
            pairs.append((ours, floor))
    print(f"Members: {members:,}, messages: {messages:,}, rounds: {rounds} (the cheapest counts).")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("aiohttp", "websockets")]
    print(f"With {', '.join(versions)}, Python {platform.python_version()}.\n")
    report(
        {name: min(costs) for name, costs in chats.items()},
        {name: min(times) for name, times in echoes.items()},
        {count: tuple(map(min, zip(*pairs, strict=True))) for count, pairs in rooms.items()},
    )


def raise_file_limit(needed: int) -> None:
    """Allow this process, and the servers that it starts, as many open files as there are connections."""
    import resource  # there is none on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise Failure(f"So many members need {needed} open files, and this system allows {hard}.")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# The report.


def report(chat: dict[str, Cost], echo: dict[str, float], rooms: dict[int, tuple[float, ...]]) -> None:
    """Print what was measured, and how that compares to the targets."""
    ours, websockets, floor = chat[OURS], chat[WEBSOCKETS], chat[FLOOR]
    targets = [
        [f"CPU of a delivery / {WEBSOCKETS}", f"{ours.microseconds / websockets.microseconds:.2f}", "at most 1.0"],
        [f"CPU of a delivery / {FLOOR}", f"{ours.microseconds / floor.microseconds:.2f}", "at most 1.3"],
        ["memory of a member (KiB)", f"{ours.kibibytes:.1f}", "at most 20"],
        [f"CPU of an echo / {ECHO}", f"{echo[OURS] / echo[ECHO]:.2f}", "at most 1.25"],
    ]
    print_table(
        ["a room", "CPU of a delivery (us)", "deliveries a second", "memory of a member (KiB)"],
        *(
            [name, f"{cost.microseconds:.2f}", f"{cost.rate:,.0f}", f"{cost.kibibytes:.1f}"]
            for name, cost in chat.items()
        ),
    )
    print_table(["an echo", "CPU of an echo (us)"], *([name, f"{time:.2f}"] for name, time in echo.items()))
    if rooms:
        print_table(
            ["members of a room", f"{OURS}, CPU of a delivery (us)", f"{FLOOR} (us)", "ratio"],
            *(
                [f"{count:,}", f"{ours:.2f}", f"{floor:.2f}", f"{ours / floor:.2f}"]
                for count, (ours, floor) in rooms.items()
            ),
        )
        times = [ours for ours, _ in rooms.values()]
        ratios = [ours / floor for ours, floor in rooms.values()]
        targets.append(["CPU of a delivery, dearest / cheapest room", f"{max(times) / min(times):.2f}", "at most 1.25"])
        targets.append(["the same, of the ratios to the floor", f"{max(ratios) / min(ratios):.2f}", "at most 1.25"])
    print_table([OURS, "measured", "target"], *targets)


def print_table(*rows: Sequence[str]) -> None:
    """Print a Markdown table, the first row being its head, all but the first column flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (rows[0], rule, *rows[1:]):
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        print(f"| {' | '.join(cells)} |")
    print()


# The other servers.


def encode(action: str, **fields: object) -> str:
    """Return a body of the protocol as JSON."""
    return json.dumps({"action": action, **fields})


def frame(payload: bytes, mask: bytes = b"", opcode: int = 1) -> bytes:
    """Return a frame, a text frame unless told otherwise; the payload has to be masked already."""
    mask_bit = 0x80 if mask else 0
    if len(payload) < 126:
        return struct.pack("!BB", 0x80 | opcode, mask_bit | len(payload)) + mask + payload
    return struct.pack("!BBH", 0x80 | opcode, mask_bit | 126, len(payload)) + mask + payload


async def serve_websockets(compression: str | None) -> None:
    """Chat with the library websockets."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    connections: set[ServerConnection] = set()

    async def chat(connection: ServerConnection) -> None:
        user = f"User{1000 + len(connections)}"
        connections.add(connection)
        await connection.send(encode("connecting", room="default", user=user))
        broadcast(connections - {connection}, encode("joined", room="default", user=user))
        async for message in connection:
            text = json.loads(message)["message"]
            broadcast(connections - {connection}, encode("chat_message", message=text, user=user))
            await connection.send(encode("chat_message", success=True, message=text))

    async with serve(chat, HOST, 0, compression=compression) as server:
        announce(next(iter(server.sockets)).getsockname()[1])
        await server.serve_forever()


class FloorMember(asyncio.Protocol):
    """A member of the floor's only room."""

    def __init__(self, transports: list[asyncio.Transport]) -> None:
        self.transports = transports
        self.user = f"User{1000 + len(transports)}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"GET"):
            self.accept(data)
        else:
            start = 8 if data[1] & 127 == 126 else 6
            mask, payload = data[start - 4 : start], data[start:]
            text = json.loads(bytes(map(int.__xor__, payload, itertools.cycle(mask))))["message"]
            self.tell_others(encode("chat_message", message=text, user=self.user))
            self.transport.write(frame(encode("chat_message", success=True, message=text).encode()))

    def accept(self, data: bytes) -> None:
        """Answer the handshake, and join the room."""
        key = data.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        digest = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.transport.write(head + b"Sec-WebSocket-Accept: " + digest + b"\r\n\r\n")
        self.transports.append(self.transport)
        self.transport.write(frame(encode("connecting", room="default", user=self.user).encode()))
        self.tell_others(encode("joined", room="default", user=self.user))

    def tell_others(self, body: str) -> None:
        """Send a body to all members but this one."""
        data = frame(body.encode())
        for transport in self.transports:
            if transport is not self.transport:
                transport.write(data)


async def serve_floor() -> None:
    """Chat with next to no code between the members."""
    transports: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: FloorMember(transports), HOST, 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_echo() -> None:
    """Echo JSON with aiohttp as it comes."""
    from aiohttp import web

    async def echo(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        async for message in websocket:
            await websocket.send_json({"echo": message.json()})
        return websocket

    app = web.Application()
    app.add_routes([web.get("/echo", echo)])
    web.run_app(app, host=HOST, port=0, print=functools.partial(print, flush=True))


def announce(port: int) -> None:
    """Print the address of a server, as aiohttp does."""
    print(f"Running on http://{HOST}:{port}", flush=True)


OTHERS = {
    WEBSOCKETS: lambda: asyncio.run(serve_websockets(compression=None)),
    DEFLATE: lambda: asyncio.run(serve_websockets(compression="deflate")),
    FLOOR: lambda: asyncio.run(serve_floor()),
    ECHO: serve_echo,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line; exit with a sentence if it is wrong."""
    from_1, from_2 = functools.partial(read_count, 1), functools.partial(read_count, 2)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", default=500, type=from_2, help="of a room (default: %(default)s)")
    parser.add_argument("--messages", default=200, type=from_1, help="that one of them says (default: %(default)s)")
    parser.add_argument("--rounds", default=5, type=from_1, help="the cheapest of which counts (default: %(default)s)")
    flat_help = f"compare rooms of so many members, too (default: {' '.join(map(str, FLAT))})"
    parser.add_argument("--flat", nargs="*", type=from_2, metavar="MEMBERS", help=flat_help)
    parser.add_argument("--serve", choices=OTHERS, help="be one of the other servers: the benchmark starts them so")
    return parser.parse_args()


def read_count(minimum: int, text: str) -> int:
    """Return the whole number in an argument."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {minimum} on.")
    return int(text)


def main() -> None:
    """Measure and report, or say in a sentence why that can't be done."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # SIGTERM ends it as Ctrl+C does
    try:
        if arguments.serve:
            OTHERS[arguments.serve]()
        elif not Path("/proc/self/statm").exists():
            raise Failure("This needs Linux, which tells in /proc what memory the servers take.")
        elif not importlib.util.find_spec("websockets"):
            raise Failure("The package websockets is missing; `uv run --group bench benchmarks/fan_out.py` brings it.")
        else:
            flat = [] if arguments.flat is None else arguments.flat or FLAT
            run(arguments.members, arguments.messages, arguments.rounds, flat)
    except (KeyboardInterrupt, subprocess.SubprocessError):  # the latter if it hit a server that was just starting
        sys.exit(130)
    except Failure as failure:
        sys.exit(str(failure))
    except OSError as error:
        sys.exit(f"A server can't be measured: {error}.")


if __name__ == "__main__":
    main()
