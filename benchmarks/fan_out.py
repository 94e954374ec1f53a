"""What a delivered message costs here and elsewhere: `uv run --group bench benchmarks/fan_out.py`.

Some members of a full room talk at once: each sends its next message as soon as it has the response to its last one.
These servers take turns, each as a process of its own, and each encodes a broadcast once, not once a member:

- server.py: the server of this project.
- websockets: that library's own broadcast(), without compression, so that like is compared with like.
- floor: the bare event loop. It builds a frame once and writes it to each transport, and does nothing else. With many
  who talk, a server can stay below it, as it can write several messages to a member at once.

This process is the load. It reads whatever arrives, for whichever member, and checks that all get each message once,
in one order; the sender gets it as the response. CPU is the user and system time of the server's process for one
delivery; the median and the 99 % are of the times from sending a message to its last delivery; memory is what the
process has grown by (resident), for each member after the first. In a tiny room, server.py may slow a talker down.
"""

import argparse
import asyncio
import functools
import importlib.metadata
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

HOST = "127.0.0.1"
TIMEOUT = 20.0  # seconds that the load waits for a frame
SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
)
HANDSHAKE += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
NO_MASK = bytes(4)  # a mask, too, and spares us the masking; the server can't know, and unmasks
TEXT = "does anybody know how many of us can talk in one room before it takes too long"
HEAD = """
| server     | talkers | CPU (us) | / floor | deliveries a second | median (ms) | 99 % (ms) | memory (KiB) |
| ---------- | ------: | -------: | ------: | ------------------: | ----------: | --------: | -----------: |"""
ROW = "| {:10} | {:7} | {:8.2f} | {:7.2f} | {:19,.0f} | {:11.1f} | {:9.1f} | {:12.1f} |"

parse = functools.lru_cache(1000)(
    json.loads
)  # nearly all members get the same bytes, so few have to be parsed


def frame(payload: bytes, mask: bytes = b"", opcode: int = 1) -> bytes:
    """Return a payload, which is masked already, as one frame: a text frame, unless told otherwise."""
    size, mask_bit = len(payload), 0x80 if mask else 0
    length = bytes([mask_bit | size]) if size < 126 else bytes([mask_bit | 126]) + size.to_bytes(2)
    return bytes([0x80 | opcode]) + length + mask + payload


class Member:
    """Somebody who is connected to a server."""

    def __init__(self, port: int) -> None:
        self.rest = b""  # the beginning of a frame whose end has not arrived yet
        self.socket = socket.create_connection((HOST, port), TIMEOUT)
        self.socket.sendall(HANDSHAKE)
        with self.socket.makefile(
            "rb", buffering=0
        ) as reader:  # a buffer would swallow the first frame
            while reader.readline().strip():
                pass
        self.socket.settimeout(None)  # with a timeout, each read would take two system calls

    def read(self) -> list[bytes]:
        """Read what has arrived, return the payloads of the frames that are complete by now, and answer pings."""
        if not (received := self.socket.recv(64 * 1024)):
            sys.exit("The server ends a connection.")
        data, payloads, start = self.rest + received, [], 0
        while start + 2 <= len(data):
            size, head = data[start + 1], start + 2
            if size == 126:
                size, head = int.from_bytes(data[head : head + 2]), head + 2
            if (end := head + size) > len(data):
                break
            if data[start] == 0x89:  # a ping; who does not answer is dropped
                self.socket.sendall(frame(data[head:end], NO_MASK, opcode=10))
            elif data[start] == 0x81:
                payloads.append(data[head:end])
            else:
                sys.exit(f"The server sends {data[start:end]!r} where a text frame is due.")
            start = end
        self.rest = data[start:]
        return payloads


class Room:
    """The members of one room, who hear and say things all at the same time."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}  # by the number of the socket
        self.epoll = select.epoll()
        self.sent: dict[str, float] = {}  # when each text was sent
        self.missing: dict[
            str, int
        ] = {}  # how many members have yet to hear a text; "" is that somebody joins

    def close(self) -> None:
        """Break all connections."""
        self.epoll.close()
        for member in self.members.values():
            member.socket.close()

    def join(self, port: int, count: int) -> None:
        """Let so many members in, one after the other, and let all hear of each."""
        for _ in range(count):
            member = Member(port)
            self.members[member.socket.fileno()] = member
            self.epoll.register(member.socket, select.EPOLLIN)
            self.sent[""], self.missing[""] = time.perf_counter(), len(self.members)
            self.listen()

    def talk(self, talkers: int, messages: int) -> list[float]:
        """Let some members say so many messages in all; return the seconds from sending each to its last delivery."""
        self.texts = (f"{number:06} {TEXT}" for number in range(messages))
        for member in list(self.members.values())[:: len(self.members) // talkers][:talkers]:
            self.say_next(member)
        return self.listen()

    def say_next(self, member: Member) -> None:
        """Let a member say the next message, if there is one."""
        if text := next(self.texts, None):
            request = json.dumps({"action": "chat_message", "message": text})
            self.sent[text], self.missing[text] = time.perf_counter(), len(self.members)
            member.socket.sendall(frame(request.encode(), NO_MASK))

    def listen(self) -> list[float]:
        """Read until all have heard everything, what is said meanwhile included; return how long each text took."""
        heard = dict.fromkeys(self.members, 0)
        order: dict[
            str, int
        ] = {}  # the place of each text among all, as those know it who hear it first
        seconds = []
        while self.missing:
            if not (ready := self.epoll.poll(TIMEOUT)):
                sys.exit(f"The server delivers too little: nothing came for {TIMEOUT:g} seconds.")
            for descriptor, _ in ready:
                member = self.members[descriptor]
                for payload in member.read():
                    body = parse(payload)
                    text = body.get("message", "")
                    if (
                        text not in self.missing
                        or order.setdefault(text, len(order)) != heard[descriptor]
                    ):
                        sys.exit(f"The server sends {payload!r} where something else is due.")
                    heard[descriptor] += 1
                    self.missing[text] -= 1
                    if not self.missing[text]:
                        del self.missing[text]
                        seconds.append(time.perf_counter() - self.sent[text])
                    if "success" in body:
                        self.say_next(member)
        return seconds


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """Start a server, yield its process id and its port, and end it."""
    ours = [str(Path(__file__).parent.parent / "server.py"), "--host", HOST, "--port", "0"]
    command = [sys.executable, *(ours if name == "server.py" else [__file__, "--serve", name])]
    signal.pthread_sigmask(
        signal.SIG_BLOCK, SIGNALS
    )  # one before `try` would leave the process behind
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            assert process.stdout
            if not (found := re.search(rb"http://[0-9.]+:(\d+)", process.stdout.readline())):
                sys.exit(f"{name} does not start; `python {' '.join(command[1:])}` says why.")
            yield process.pid, int(found[1])
        finally:
            process.kill()  # a shutdown in good order would take seconds, and is not what is measured


def measure(
    name: str, members: int, talkers: list[int], messages: int
) -> dict[int, tuple[float, ...]]:
    """Return what a server costs, for each number of talkers: the last cells of a row, but for the ratio."""
    costs: dict[int, tuple[float, ...]] = {}
    with running(name) as (process_id, port), closing(Room()) as room:
        cpu_clock = ~process_id << 3 | 2  # how Linux numbers the CPU clocks of processes
        statm = Path(
            f"/proc/{process_id}/statm"
        )  # its second number is the resident memory in pages
        room.join(port, 1)
        room.talk(1, 1)
        pages_before = int(statm.read_text().split()[1])
        room.join(port, members - 1)
        for count in talkers:
            room.talk(count, count)  # what happens only once is no part of the costs
            start, cpu_start = time.perf_counter(), time.clock_gettime(cpu_clock)
            times = sorted(room.talk(count, messages))
            cpu, seconds = time.clock_gettime(cpu_clock) - cpu_start, time.perf_counter() - start
            deliveries = messages * members
            median, slow = times[messages // 2], times[messages * 99 // 100]
            memory = (
                (int(statm.read_text().split()[1]) - pages_before)
                * os.sysconf("SC_PAGE_SIZE")
                / (members - 1)
            )
            costs[count] = (
                cpu / deliveries * 1e6,
                deliveries / seconds,
                median * 1e3,
                slow * 1e3,
                memory / 1024,
            )
    return costs


def run(members: int, talkers: list[int], messages: int, rounds: int) -> None:
    """Measure all in turn; report the cheapest of the rounds: whatever else a machine does only adds to the costs."""
    import resource  # there is none on Windows

    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if members + 100 > most_files != resource.RLIM_INFINITY:
        sys.exit(
            f"So many members need {members + 100} open files, and this system allows {most_files}."
        )
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (members + 100, most_files)
    )  # the servers inherit that
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("websockets", "aiohttp")]
    cheapest: dict[tuple[str, int], tuple[float, ...]] = {}
    for number in range(1, rounds + 1):
        print(f"Round {number} of {rounds} ...", file=sys.stderr, flush=True)
        for name in ("server.py", *OTHERS):
            for count, costs in measure(name, members, talkers, messages).items():
                cheapest[name, count] = min(costs, cheapest.get((name, count), costs))
    print(f"Members: {members:,}, messages: {messages:,}, rounds: {rounds} (the cheapest counts).")
    print(f"With {', '.join(versions)}, Python {sys.version.split()[0]}.")
    print(HEAD)
    for (name, count), (cpu, *others) in cheapest.items():
        print(ROW.format(name, count, cpu, cpu / cheapest["floor", count][0], *others))


def respond(request: str | bytes) -> list[str]:
    """Return the response to a request, and what all others are told; no request means that somebody joins."""
    if not request:
        return [
            json.dumps({"action": action, "user": "User1000"})
            for action in ("connecting", "joined")
        ]
    said = {"action": "chat_message", "message": json.loads(request)["message"]}
    return [json.dumps(said | {"success": True}), json.dumps(said | {"user": "User1000"})]


async def serve_websockets() -> None:
    """Chat with the library websockets."""
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    connections: set[ServerConnection] = set()

    async def chat(connection: ServerConnection) -> None:
        connections.add(connection)
        request: str | bytes = ""
        while True:
            response, news = respond(request)
            broadcast(connections - {connection}, news)
            await connection.send(response)
            request = await connection.recv()

    async with serve(chat, HOST, 0, compression=None) as server:
        print(f"http://{HOST}:{next(iter(server.sockets)).getsockname()[1]}", flush=True)
        await server.serve_forever()


async def serve_floor() -> None:
    """Chat with nothing between the members; they are taken to send whole requests, masked with zeros."""
    transports: set[asyncio.WriteTransport] = set()

    async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        transports.add(writer.transport)
        while request:
            response, news = (
                frame(body.encode()) for body in respond(request.partition(NO_MASK)[2])
            )
            for transport in transports - {writer.transport}:
                transport.write(news)
            writer.write(response)
            request = await reader.read(1024)

    server = await asyncio.start_server(chat, HOST, 0)
    print(f"http://{HOST}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


OTHERS = {"websockets": serve_websockets, "floor": serve_floor}


def positive(text: str) -> int:
    """Return the number in an argument; raise ValueError, on which argparse names the argument."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main() -> None:
    """Measure and report, or say in a sentence why that can't be done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--members", default=500, type=positive, help="of the room (default: %(default)s)"
    )
    parser.add_argument(
        "--talkers", default=[1, 20], nargs="+", type=positive, help="at once (default: 1 20)"
    )
    parser.add_argument(
        "--messages", default=500, type=positive, help="that they say in all (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", default=5, type=positive, help="the cheapest counts (default: %(default)s)"
    )
    parser.add_argument(
        "--serve", choices=OTHERS, help="be one of the other servers: the benchmark starts them so"
    )
    arguments = parser.parse_args()
    if max(arguments.talkers) > (most := min(arguments.members - 1, arguments.messages)):
        parser.error(
            f"argument --talkers: at most {most} can talk: somebody has to listen, and each says something."
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl+C does
    try:
        if arguments.serve:
            asyncio.run(OTHERS[arguments.serve]())
        elif sys.platform != "linux":
            sys.exit("This needs Linux, which counts the CPU time and the memory of the servers.")
        else:
            run(arguments.members, arguments.talkers, arguments.messages, arguments.rounds)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(
            f"The package {error.name} is missing; `uv run --group bench benchmarks/fan_out.py` brings it."
        )
    except OSError as error:
        sys.exit(f"A server can't be measured: {error}.")


if __name__ == "__main__":
    main()
