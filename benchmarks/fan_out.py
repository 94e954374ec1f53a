"""What a delivered message costs, here and elsewhere: `uv run --group bench benchmarks/fan_out.py`.

All members of a full room take turns. With one talker, the next member sends a message as soon as
the last one has its response; with 20 talkers, 20 messages are on their way at any time. These
servers run in turn, each as a process of its own, and each encodes a broadcast only once:

- server.py: the server of this project, or the ones that --servers names.
- websockets: that library's own broadcast(), without compression, because server.py has none.
- floor: the bare event loop. It builds a frame once, writes it to each transport, and does nothing
  else. With many talkers, a server can be below it, because it can combine messages in one write.

This process is the load generator. It checks that each member receives every message once, all in
one order; the sender receives it as the response. CPU is the user and system time of the server for
one delivery. The median and the 99th percentile are of the times from sending a message to its last
delivery. KiB is the growth of the server's memory for each member after the first.
"""

import argparse
import asyncio
import functools
import importlib.metadata
import itertools
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
TIMEOUT = 20.0  # seconds that the load generator waits for a frame
HANDSHAKE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
HANDSHAKE += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
NO_MASK = bytes(4)  # a mask of zeros is valid, and leaves the payload as it is
TEXT = "does anybody know how many of us can talk in one room before it takes too long"
HEAD = """
| server     | talkers | CPU (us) | / floor | deliveries / s | median (ms) | 99 % (ms) |   KiB |
| ---------- | ------: | -------: | ------: | -------------: | ----------: | --------: | ----: |"""
ROW = "| {:10} | {:7} | {:8.2f} | {:7.2f} | {:14,.0f} | {:11.1f} | {:9.1f} | {:5.1f} |"

Costs = dict[int, tuple[float, ...]]
parse = functools.lru_cache(1000)(json.loads)  # nearly all members receive the same bytes


def frame(payload: bytes, mask: bytes = b"", opcode: int = 1) -> bytes:
    """Return one frame, a text frame by default. The payload is masked already."""
    size, mask_bit = len(payload), 0x80 if mask else 0
    length = bytes([mask_bit | size]) if size < 126 else bytes([mask_bit | 126]) + size.to_bytes(2)
    return bytes([0x80 | opcode]) + length + mask + payload


class Member:
    """A client that is connected to a server."""

    def __init__(self, port: int) -> None:
        self.rest = b""  # the beginning of a frame whose end has not arrived yet
        self.socket = socket.create_connection((HOST, port), TIMEOUT)
        self.socket.sendall(HANDSHAKE)
        with self.socket.makefile("rb", buffering=0) as reader:  # a buffer could swallow a frame
            while reader.readline().strip():
                pass
        self.socket.settimeout(None)  # with a timeout, each read would take two system calls

    def read(self) -> list[bytes]:
        """Read what has arrived, answer pings, and return the payloads of complete frames."""
        if not (received := self.socket.recv(64 * 1024)):
            sys.exit("The server closed a connection.")
        data, payloads, start = self.rest + received, [], 0
        while start + 2 <= len(data):
            size, head = data[start + 1], start + 2
            if size == 126:
                size, head = int.from_bytes(data[head : head + 2]), head + 2
            if (end := head + size) > len(data):
                break
            if data[start] == 0x89:  # a ping; the server drops clients that do not answer
                self.socket.sendall(frame(data[head:end], NO_MASK, opcode=10))
            elif data[start] == 0x81:
                payloads.append(data[head:end])
            else:
                sys.exit(f"The server sends {data[start:end]!r} where a text frame is due.")
            start = end
        self.rest = data[start:]
        return payloads


class Room:
    """The members of one room."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}  # by the number of the socket
        self.epoll = select.epoll()
        self.sent: dict[str, float] = {}  # when each text was sent; "" stands for a join
        self.missing: dict[str, int] = {}  # how many members have yet to receive a text

    def close(self) -> None:
        """Break all connections."""
        for member in self.members.values():
            member.socket.close()

    def join(self, port: int, count: int) -> None:
        """Let members join one by one, and wait until all have heard of each."""
        for _ in range(count):
            member = Member(port)
            self.members[member.socket.fileno()] = member
            self.epoll.register(member.socket, select.EPOLLIN)
            self.sent[""], self.missing[""] = time.perf_counter(), len(self.members)
            self.listen()

    def talk(self, talkers: int, messages: int) -> list[float]:
        """Let members send messages; return the seconds from sending each to its last delivery."""
        self.texts = (f"{number:06} {TEXT}" for number in range(messages))
        self.turns = itertools.cycle(self.members.values())
        for _ in range(talkers):
            self.say_next()
        return self.listen()

    def say_next(self) -> None:
        """Let the next member send the next message, if there is one."""
        if text := next(self.texts, None):
            request = json.dumps({"action": "chat_message", "message": text})
            self.sent[text], self.missing[text] = time.perf_counter(), len(self.members)
            next(self.turns).socket.sendall(frame(request.encode(), NO_MASK))

    def listen(self) -> list[float]:
        """Read until all have received everything; return how long each text took."""
        received = dict.fromkeys(self.members, 0)
        order: dict[str, int] = {}  # the place of each text, set by the first member to receive it
        seconds = []
        while self.missing:
            if not (ready := self.epoll.poll(TIMEOUT)):
                sys.exit(f"The server delivers too little: nothing came for {TIMEOUT:g} seconds.")
            for descriptor, _ in ready:
                for payload in self.members[descriptor].read():
                    body = parse(payload)
                    text = body.get("message", "")
                    place = order.setdefault(text, len(order))
                    if text not in self.missing or place != received[descriptor]:
                        sys.exit(f"The server sends {payload!r} where something else is due.")
                    received[descriptor] += 1
                    self.missing[text] -= 1
                    if not self.missing[text]:
                        del self.missing[text]
                        seconds.append(time.perf_counter() - self.sent[text])
                    if "success" in body:
                        self.say_next()
        return seconds


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """Start a server, yield its process id and its port, and end it."""
    script = [__file__, "--serve", name] if name in OTHERS else [name, "--port", "0"]
    command = [sys.executable, *script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout
            if not (found := re.search(rb"http://[0-9.]+:(\d+)", process.stdout.readline())):
                sys.exit(f"{name} does not start; `python {' '.join(script)}` says why.")
            yield process.pid, int(found[1])
        finally:
            process.kill()  # an orderly shutdown would take seconds, and is not measured


def measure(name: str, members: int, talkers: list[int], messages: int) -> Costs:
    """Return what a server costs for each number of talkers: a row's cells without the ratio."""
    costs: Costs = {}
    with running(name) as (process_id, port), closing(Room()) as room:
        cpu_clock = ~process_id << 3 | 2  # how Linux numbers the CPU clocks of processes
        statm = Path(f"/proc/{process_id}/statm")  # its second number is the resident pages
        page = os.sysconf("SC_PAGE_SIZE") / 1024
        room.join(port, 1)
        room.talk(1, 1)
        pages_before = int(statm.read_text().split()[1])
        room.join(port, members - 1)
        for count in talkers:
            room.talk(count, count)  # what happens only once does not count
            start, cpu_start = time.perf_counter(), time.clock_gettime(cpu_clock)
            times = sorted(room.talk(count, messages))
            cpu, seconds = time.clock_gettime(cpu_clock) - cpu_start, time.perf_counter() - start
            memory = (int(statm.read_text().split()[1]) - pages_before) * page / (members - 1)
            median, slow = times[messages // 2] * 1e3, times[messages * 99 // 100] * 1e3
            deliveries = messages * members
            costs[count] = (cpu / deliveries * 1e6, deliveries / seconds, median, slow, memory)
    return costs


def run(servers: list[str], members: int, talkers: list[int], messages: int, rounds: int) -> None:
    """Measure all, and report the cheapest round: all else that a machine does only adds costs."""
    import resource  # there is none on Windows

    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = members + 100
    if files > most_files != resource.RLIM_INFINITY:
        sys.exit(f"{members} members need {files} open files, and this system allows {most_files}.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most_files))  # the servers inherit it
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("websockets", "aiohttp")]
    cheapest: dict[tuple[str, int], tuple[float, ...]] = {}
    for number in range(1, rounds + 1):
        print(f"Round {number} of {rounds} ...", file=sys.stderr, flush=True)
        for name in (*servers, *OTHERS):
            for count, costs in measure(name, members, talkers, messages).items():
                cheapest[name, count] = min(costs, cheapest.get((name, count), costs))
    print(f"Members: {members:,}, messages: {messages:,}, rounds: {rounds} (the cheapest counts).")
    print(f"With {', '.join(versions)}, Python {sys.version.split()[0]}.\n{HEAD}")
    for (name, count), (cpu, *others) in cheapest.items():
        ratio = cpu / cheapest["floor", count][0]
        print(ROW.format(os.path.relpath(name), count, cpu, ratio, *others))


def respond(request: str | bytes) -> list[str]:
    """Return the response to a request, and the broadcast; no request means that a user joins."""
    if not request:
        actions = ("connecting", "joined")
        return [json.dumps({"action": action, "user": "User1000"}) for action in actions]
    said = {"action": "chat_message", "message": json.loads(request)["message"]}
    return [json.dumps(said | {"success": True}), json.dumps(said | {"user": "User1000"})]


async def serve_websockets() -> None:
    """Serve a chat on the library websockets."""
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
    """Serve a chat on bare transports; each read is taken for one request, masked with zeros."""
    transports: set[asyncio.WriteTransport] = set()

    async def chat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        transports.add(writer.transport)
        while request:
            response, news = (frame(b.encode()) for b in respond(request.partition(NO_MASK)[2]))
            for transport in transports - {writer.transport}:
                transport.write(news)
            writer.write(response)
            request = await reader.read(1024)

    server = await asyncio.start_server(chat, HOST, 0)
    print(f"http://{HOST}:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


OTHERS = {"websockets": serve_websockets, "floor": serve_floor}


def main() -> None:
    """Measure and report, or say in a sentence why that can't be done."""
    parser = argparse.ArgumentParser(description="Measure what a delivered message costs.")
    ours = str(Path(__file__).parent.parent / "server.py")
    parser.add_argument("--servers", default=[ours], nargs="+", help="paths, to compare versions")
    parser.add_argument("--members", default=500, type=int, help="default: %(default)s")
    parser.add_argument("--talkers", default=[1, 20], nargs="+", type=int, help="default: 1 20")
    parser.add_argument("--messages", default=500, type=int, help="default: %(default)s")
    parser.add_argument("--rounds", default=5, type=int, help="default: %(default)s")
    parser.add_argument("--serve", choices=OTHERS, help="run one of the other servers (used here)")
    arguments = parser.parse_args()
    serve = vars(arguments).pop("serve")
    most = min(arguments.members - 1, arguments.messages)
    if not 1 <= min(arguments.talkers) <= max(arguments.talkers) <= most or arguments.rounds < 1:
        parser.error(f"--talkers: from 1 to {most} of the members can talk, in 1 round or more.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends this as Ctrl+C does
    try:
        if serve:
            asyncio.run(OTHERS[serve]())
        elif sys.platform != "linux":
            sys.exit("This needs Linux, which counts the CPU time and the memory of the servers.")
        else:
            run(**vars(arguments))
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        sys.exit(f"The package {error.name} is missing; `uv run --group bench ...` installs it.")
    except OSError as error:
        sys.exit(f"A server can't be measured: {error}.")


if __name__ == "__main__":
    main()
