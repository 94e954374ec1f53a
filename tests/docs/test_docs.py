"""What the documents show is true: one does what they say, step by step, in a copy."""

import importlib
import json
import re
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

import client
import client_echo_example
import utils
from server import PRIVATE_NAME
from tests.docs.helpers import PATHS, TEXTS, Copy, blocks, commands
from tests.helpers import ROOT, Join, Script, StartScript, joined, left, said

# It takes many processes. So it is tested where the style is checked, too.
pytestmark = pytest.mark.needs("lint")

math_student: Any = importlib.import_module("examples.math_student")

README = TEXTS["README.md"]
SERVER, TESTS, ECHO, AMY, BOB, ALONE, FLOOD, STUDENT, PAGE, ALLOW = commands("README.md")
SERVERS = [line for name in TEXTS for line in commands(name) if re.search(r"server(\.py|:)", line)]
SERVERS += re.findall("^ExecStart=(.*)", TEXTS["deploy.md"], re.MULTILINE)
SERVERS += ["uv run server.py --port 9000", "uv run examples/simple_server.py"]
READ, BOTH, LEAVE = blocks("README.md", "python client")
IMPORTS, LAST_LINE = READ.partition("async def main")[0], READ.splitlines()[-1]
STEPS = [READ, IMPORTS + BOTH + LAST_LINE, IMPORTS + BOTH.rpartition("async def")[0] + LEAVE]
REQUESTS = re.findall(r"^\| `(.*)` \| `(.*)` \| (?:`(.*)` )?\|$", README, re.MULTILINE)
PROXIED, CERTIFICATE, CLIENT = commands("deploy.md")[-4:-1]
# For each proxy: a frame for what is shown, a command, and what it prints when it is up.
NGINX = "daemon off; master_process off; pid pid; error_log stderr notice; events {} http { %s }"
CADDY = "{\nadmin off\nauto_https disable_redirects\nhttps_port 443\n}\n%s"
PROXIES = {
    "nginx": (NGINX, "nginx -e stderr -p . -c nginx", "getrlimit"),
    "caddyfile": (CADDY, "caddy run --adapter caddyfile --config caddyfile", "serving initial"),
}


@pytest.fixture
def copy(tmp_path: Path, unused_tcp_port_factory: Any, start_script: StartScript) -> Copy:
    return Copy(tmp_path, unused_tcp_port_factory, start_script)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    """Files and headings exist, and a name in a link to a Python file is defined there."""
    for label, link in re.findall(r"\[([^]]+)\]\(([^):\s]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            assert f"# {heading.replace('-', ' ')}\n" in target.read_text().lower(), link
        if target.suffix == ".py" and not label.endswith("py`"):
            for name in label.strip("`").split("."):
                pattern = rf"^ *(class|def|async def) {name}\b|^{name} = "
                assert re.search(pattern, target.read_text(), re.MULTILINE), label


def test_names_and_figures() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    words = " ".join(" ".join(TEXTS.values()).split())
    assert set(re.findall(r"--group (\w+)", words)) <= project["dependency-groups"].keys()
    shown = re.findall(r"^\| .*`(/\w+)", TEXTS["terminal.md"], re.MULTILINE)
    assert sorted(shown) == sorted(client.COMMANDS)
    broadcasts = map(json.loads, re.findall(r"^\| `(.*)` \| Bob", README, re.MULTILINE))
    assert list(broadcasts) == [joined("math", "Bob"), left("math", "Bob", shame=True)]
    endings = "|".join(re.findall(r"`\.([a-z.]+)`", TEXTS["deploy.md"]))
    assert PRIVATE_NAME.pattern.endswith(f"({endings})".replace(".", r"\."))
    for sentence in (
        " ".join(f'"{package}"' for package in project["project"]["dependencies"]),
        f"a message every {client_echo_example.INTERVAL} seconds",
        f"Every {math_student.INTERVAL} seconds, {math_student.NICK} asks",
        f"after {client.MIN_PAUSE} second, then after 2, 4, and so on, up to {client.MAX_PAUSE}.",
        f"1 to {utils.MAX_NAME} visible characters",
        f"more than {utils.MAX_MESSAGE // 1024} KiB ends the connection",
        f"{utils.MAX_BACKLOG // 1024**2} MiB unread",
        f"may send {utils.MAX_RATE // 1024} KiB a second",
        f"After {utils.HEARTBEAT:.0f} seconds of silence the server sends a ping",
    ):
        assert sentence in words, sentence


@pytest.mark.parametrize("command", SERVERS)
async def test_servers(copy: Copy, command: str) -> None:
    server = await copy.run(command, "Running on")
    server.process.send_signal(signal.SIGINT)
    assert (await server.end())[0] == 0


async def run_client(copy: Copy, step: int, *patterns: str, loop: str = "while True") -> Script:
    """Run my_client.py as it is after a step."""
    copy.write("my_client.py", STEPS[step - 1].replace("while True", loop))
    return await copy.run("uv run python -X dev my_client.py", *patterns)


async def test_try_it(copy: Copy, join: Join) -> None:
    """The commands, and each client that one writes, until the server stops."""
    server = await copy.run(SERVER, "Running on")
    await copy.run(ECHO, "^> ", "^< ", "^> ")
    (shown,) = blocks("README.md", "text")
    first, *others = re.sub(r"User\d+", r"User\\d+", shown).splitlines()
    client = await run_client(copy, 1, f"^{first}$")
    await (await join(copy.url)).say("hello")
    for line in others:
        await client.find(f"^{line}$")
    eve = await join(copy.url, "Eve", "math")
    for command in (AMY, BOB, *commands("terminal.md")):
        output = await copy.output(command, "one\n")
        assert ("> {" in output) == ("\n< '{" in output) == ("--verbose" in command)
        assert "one" in [body.get("message") for body in await eve.catch_up()]
    await copy.run(STUDENT, r"'MathStudent': '\d+ [-+*/] \d+'")
    amy, _ = await join(copy.url, "Amy", "garden"), await join(copy.url, "Eve", "garden")
    second = await run_client(copy, 2, "^Refused: Nick.* in use$", r"^You: 'Is anybody here\?'$")
    third = await run_client(copy, 3, "^You: ")
    await amy.say("Yes!")
    await second.find("^Amy: 'Yes!'$")
    server.process.send_signal(signal.SIGINT)
    await second.find(r"^aiohttp\.client_exceptions\.ClientConnectionResetError")
    assert (await third.end())[0] == 0


@pytest.mark.parametrize("loop", ["while True", "for _ in range(1)", "while 1 / 0"])
async def test_leaving(copy: Copy, join: Join, loop: str) -> None:
    """By Ctrl+C, because write() returns, or because it fails, which is shown once."""
    await copy.run(SERVER, "Running on")
    amy = await join(copy.url, "Amy", "garden")
    client = await run_client(copy, 3, loop=loop)
    if loop == "while True":
        await client.find("^You: ")
        client.process.send_signal(signal.SIGINT)
    code, output, _ = await client.end()
    has_failed = loop == "while 1 / 0"
    assert code == output.count("ZeroDivisionError") == output.count("Traceback") == has_failed
    assert "Warning" not in output
    assert (await amy.catch_up())[-1] == left("garden", "Eve", shame=False)


async def test_my_server(copy: Copy, join: Join) -> None:
    """One can talk to it by hand, see its traceback, flood it, and chat."""
    echo, view, app = blocks("README.md", "python server")
    code = echo.replace("from aiohttp import web\n", view)
    copy.write("my_server.py", re.sub(r"(app = .*\n)", rf"\1{app}", code))
    server = await copy.run("uv run my_server.py", "Running on")
    amy = await join(copy.url)
    (lines,) = blocks("README.md", "python echo")
    (flood,) = re.findall(r"`(for .*?)`", README)
    connect = lines.splitlines()[2].replace("/echo", "/chat")
    lines += f"{connect}\n{flood.replace('20_000', '20')}\n\n"
    output = await copy.output("uv run python -m asyncio", copy.here(lines))
    assert "{'echo': [1, 2]}" in output
    assert "WSMsgType.CLOSED" in output
    await server.find("json.decoder.JSONDecodeError: Expecting value")
    await amy.send(action="join_room", room="math")
    assert "! This can't be done." in await copy.output(ALONE, "hello\n")
    await copy.run(FLOOD)
    messages: list[str] = []
    while len(messages) < 221:
        messages += filter(None, [(await amy.receive()).get("message")])
    assert messages == ["x"] * 20 + ["hello"] + ["x" * 60_000] * 200


@pytest.mark.parametrize(("sent", "response", "broadcast"), REQUESTS)
async def test_requests(url: URL, join: Join, sent: str, response: str, broadcast: str) -> None:
    amy, bob = await join(url, "Amy", "math"), await join(url, "Bob", "math")
    await amy.catch_up()
    await bob.websocket.send_str(sent)
    assert await bob.receive() == json.loads(response)
    assert await amy.catch_up() == ([json.loads(broadcast)] if broadcast else [])


@pytest.mark.needs("browser")
async def test_page(copy: Copy, join: Join, chromium: Any) -> None:
    """A message appears once. What the server refuses is not shown as one's own words."""
    await copy.run(PAGE, "Serving HTTP")
    await copy.run(ALLOW, "Running on")
    amy = await join(copy.url)
    page = await chromium.new_page()
    await page.goto(copy.here("http://localhost:8000/examples/simple_page.html"))
    assert (await amy.receive())["action"] == "joined"
    await amy.say("hello")
    await page.get_by_text(f"{amy.user}: hello").wait_for()
    await page.keyboard.type("\n<b>hi\n")  # the empty line is not sent
    await page.get_by_text("You: <b>hi").wait_for()
    await page.evaluate("socket.send('nonsense')")
    await page.get_by_text("Refused: This is not valid JSON").wait_for()
    assert await page.locator("li").count() == 3


async def test_whisper(copy: Copy) -> None:
    """With the solutions, the tests pass, and one can whisper in a terminal."""
    (terminal,) = blocks("README.md", "python terminal")
    cases = blocks("README.md", "python respond") + re.split(r" +# in .*\n", terminal)[1:]
    places = re.findall(r"above `?(case .*?)[`\n]", README)
    for name, case, place in zip(("server", "client", "client"), cases, places, strict=True):
        code = (copy.folder / f"{name}.py").read_text()
        (line,) = re.findall(rf"^ +{re.escape(place)}", code, re.MULTILINE)
        copy.write(f"{name}.py", code.replace(line, case + line))
    copy.write("test_whisper.py", *blocks("README.md", "python test"))
    for command in (TESTS, *[line for line in commands("deploy.md") if "pytest" in line]):
        assert "1 passed" in await copy.output(command, "")
    await copy.run(SERVER, "Running on")
    amy = await copy.run(AMY, "You are now known as Amy")
    await copy.output(BOB, *re.findall("`(/whisper .*?)`", README))
    await amy.find(r"\* Bob whispers: psst")


@pytest.mark.needs("deploy")
@pytest.mark.parametrize("kind", PROXIES)
async def test_proxy(copy: Copy, join: Join, kind: str) -> None:
    """A client that trusts the certificate chats through it, others say why they cannot."""
    port, (line,) = copy.ports["443"], re.findall(r"`(tls .*?)`", TEXTS["deploy.md"])
    copy.replaced |= {" 443": f" {port}", "reverse_proxy": f"{line}\nreverse_proxy"}
    copy.replaced |= {"/etc/ssl/chat/": "", "chat.example.org": "localhost"}
    copy.replaced |= {"wss://chat.lan": f"wss://localhost:{port}", "chat.lan": "localhost"}
    await copy.run(PROXIED, "Running on")
    amy = await join(copy.url)
    await copy.output(CERTIFICATE, "")
    frame, command, shown = PROXIES[kind]
    copy.write(kind, frame % blocks("deploy.md", kind)[0])
    await copy.run(f"exec {command}", shown)
    await copy.run(f"{ECHO} --url wss://chat.lan/echo", "^wss:.*: self-signed certificate")
    await copy.run(CLIENT.partition(" ")[2], "^wss:.*: self-signed certificate")
    await copy.run(CLIENT.replace("chat.lan", "127.0.0.1:8080"), r"^wss:.*\[SSL")
    await copy.output(CLIENT, "hello\n")
    assert (await amy.catch_up())[1]["message"] == "hello"
    await join(f"https://localhost:{port}", headers={"Origin": "https://localhost"}, ssl=False)


@pytest.mark.needs("redis")
async def test_many_processes(copy: Copy, engine: str, join: Join) -> None:
    """All commands run one chat, as the user that is shown."""
    from redis import Redis

    gunicorn, *singles = commands("many-processes.md")
    with Redis.from_url(engine) as redis:
        redis.flushall()
        redis.execute_command(*blocks("many-processes.md", "text")[0].split())
    copy.replaced["redis://localhost"] = engine.replace("//", "//chat:password@")
    chat = await copy.run(gunicorn, *["Connected to Redis"] * 3)
    for command in singles:
        await copy.run(command, "Running on")
    urls = [copy.here(f"http://127.0.0.1:{port}") for port in (8080, 8081, 8082)]
    amy, *others = [await join(url, room="math") for url in urls]
    await amy.say("hello")
    for member in others:
        assert (await member.catch_up())[-1] == said(amy.user, "hello")
    chat.process.terminate()
    assert await amy.close_code() == 1001
    assert (await chat.end())[0] == 0
