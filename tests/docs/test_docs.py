"""What docs/ and CONTRIBUTING.md show is true, and links and commands of the README, too."""

import asyncio
import functools
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

import client
import utils
from server import PRIVATE_NAME, init_app
from tests.helpers import (
    PACKAGES,
    ROOT,
    TIMEOUT,
    Join,
    Member,
    StartScript,
    StartServer,
    eventually,
    joined,
    left,
)

Serve = Callable[[web.Application], Awaitable[URL]]

# What the text shows starts many processes. So it is checked where the style is checked, too.
pytestmark = pytest.mark.needs("lint")

PATHS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {path.name: path.read_text() for path in PATHS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def blocks(name: str, kind: str) -> list[str]:
    """Return the fenced blocks of one kind in a document."""
    return re.findall(rf"^```{kind}\n((?:.*\n)*?)^```$", TEXTS[name], re.MULTILINE)


COMMANDS = [line for name in TEXTS for text in blocks(name, "shell") for line in text.splitlines()]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_links(path: Path) -> None:
    """Files and headings exist, and a name in a link to a Python file is defined there."""
    for label, link in re.findall(r"\[([^]]+)\]\(([^)\s]+)\)", path.read_text()):
        file, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = path.parent / file if file else path
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings]
            assert heading in anchors, link
        if target.suffix == ".py" and not label.endswith("py`"):
            for name in label.strip("`").split("."):
                pattern = rf"^ *(class|def|async def) {name}\b|^{name} = "
                assert re.search(pattern, target.read_text(), re.MULTILINE), label


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "README.md"])
def test_quoted_lines_stand_in_the_source(name: str) -> None:
    kinds = re.findall(r"^```(\S.*)$", TEXTS[name], re.MULTILINE)
    assert TEXTS[name].count("```") == 2 * len(kinds)
    for kind in kinds:
        language, _, file = kind.partition(" ")
        assert file or language in ("shell", "text", "ini", "nginx", "caddyfile"), kind
        for text in blocks(name, kind) if file else ():
            assert f"\n{text}" in (ROOT / file).read_text()


def test_figures() -> None:
    words = " ".join(TEXTS["server.md"].split())
    for sentence in (
        f"more than {utils.MAX_BACKLOG // 1024**2} MiB",
        f"{utils.MAX_RATE // 1024} KiB a second",
        f"at least {utils.MIN_COST} bytes",
        f"may be sent {utils.DELIVERY_RATE // 1024**2} MiB a second",
        f"Each delivery counts as at least {utils.MIN_COST} bytes",
        f"lets it read {utils.MAX_READ // 1024} KiB from a client",
        f"writes {utils.MAX_WRITES} outboxes in one iteration",
        f"more than {utils.MAX_MESSAGE // 1024} KiB ends",
        f"After {utils.HEARTBEAT:.0f} seconds of silence",
        f"does not respond within {utils.HEARTBEAT / 2:.0f}",
        f"gives a client {utils.CLOSE_TIMEOUT:.0f} seconds",
    ):
        assert sentence in words, sentence
    assert f"pings come every {utils.HEARTBEAT:.0f} seconds" in TEXTS["deploy.md"]


def test_names_that_are_trusted() -> None:
    text = TEXTS["deploy.md"].partition("## Names that are trusted\n\n")[2].partition("\n\n")[0]
    endings = re.findall(r"`\.([a-z.]+)`", text)
    pattern = "|".join(endings).replace(".", r"\.")
    assert PRIVATE_NAME.pattern.endswith(f"({pattern})")


@functools.cache
def help_of(*command: str) -> str:
    return subprocess.check_output([*command, "--help"], cwd=ROOT, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    """Programs, scripts, groups and options exist."""
    for group in re.findall(r"--group (\w+)", command):
        assert group in PROJECT["dependency-groups"]
        if not all(map(importlib.util.find_spec, PACKAGES.get(group, ()))):
            pytest.skip(f"it needs `uv run --group {group} pytest`")
    command = re.split(r" && | \| ", command)[-1]
    command = re.sub(r"^\w+=\S+ |(uv|poetry) run |--group \w+ |--all-groups ", "", command)
    words = shlex.split(re.sub(r"^python ", "", command))
    if words[:3] == ["-m", "pip", "install"]:
        requirements = [word for word in words[3:] if not word.startswith("-")]
        assert requirements in (["pip>=25.1"], [*PROJECT["project"]["dependencies"], "dev"])
        return
    if words[0] in ("curl", "openssl", "poetry"):
        return  # the first two are tested below
    if words[0] == "uv" and not shutil.which("uv"):
        pytest.skip("it needs uv")
    script = words[:1] if words[0].endswith(".py") else ["-m", words[words[0] == "-m"]]
    assert (ROOT / script[-1]).exists() or importlib.util.find_spec(script[-1]) or words[0] == "uv"
    if options := {word for word in words if word.startswith("-")} - {"-m"}:
        shown = help_of(*(words[:2] if words[0] == "uv" else [sys.executable, *script]))
        if "aiohttp.web" in words:  # it passes on the options of server.py
            shown += help_of(sys.executable, "server.py")
        assert options <= set(re.findall(r"(?<![\w-])--?\w[\w-]*", shown))


# The terminal client


def test_commands_and_pauses_of_the_client() -> None:
    shown = re.findall(r"^\| .*`(/\w+)", TEXTS["terminal.md"], re.MULTILINE)
    assert sorted(shown) == sorted(client.COMMANDS)
    assert f"after {client.MIN_PAUSE} second" in TEXTS["terminal.md"]
    assert f"up to {client.MAX_PAUSE}." in TEXTS["terminal.md"]


async def test_pipe(serve: Serve, start_script: StartScript) -> None:
    url = await serve(await init_app())
    ((source, words),) = [
        text.split("| uv run ") for text in blocks("terminal.md", "shell") if "|" in text
    ]
    script = await start_script(*shlex.split(words), "--url", url / "chat", shell=f"{source} |")
    code, output, errors = await script.end()
    messages = [line.split(": ")[1] for line in output.splitlines()[-3:]]
    assert (code, messages, errors) == (0, ["one", "two", "three"], "")


# What goes around the server: a proxy, a certificate, a service


def listens(port: int) -> bool:
    with socket.socket() as plain:
        return plain.connect_ex(("127.0.0.1", port)) == 0


def make_certificate(folder: Path) -> Path:
    """Make cert.pem and key.pem with the command that is shown, but for other names."""
    (command,) = [command for command in COMMANDS if command.startswith("openssl")]
    names = "DNS:localhost,DNS:chat.example.org"
    words = shlex.split(command.replace("DNS:chat.lan", names))
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem"


def nginx(folder: Path, port: int, server_port: int) -> list[str]:
    """Write the configuration that is shown, for these ports; return the command to run it."""
    (server,) = blocks("deploy.md", "nginx")
    server = server.replace("listen 443", f"listen 127.0.0.1:{port}")
    server = server.replace("127.0.0.1:8080", f"127.0.0.1:{server_port}")
    server = server.replace("/etc/ssl/chat", str(folder))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    general = f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{general}http {{ access_log off; {folders}{server} }}")
    return ["nginx", "-e", "stderr", "-c", f"{folder}/nginx.conf"]


def caddy(folder: Path, port: int, server_port: int) -> list[str]:
    """Do the same for Caddy."""
    (site,) = blocks("deploy.md", "caddyfile")
    site = site.replace("127.0.0.1:8080", f"127.0.0.1:{server_port}")
    (line,) = re.findall(r"`(tls .*?)`", TEXTS["deploy.md"])
    name = "chat.example.org"
    site = site.replace(f"{name} {{", f"https://{name}:{port} {{\n{line}\n")
    (folder / "Caddyfile").write_text(f"{{\nadmin off\nauto_https disable_redirects\n}}\n{site}")
    return ["caddy", "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


@pytest.mark.needs("deploy")
@pytest.mark.parametrize("configure", [nginx, caddy])
async def test_proxy(
    configure: Callable[[Path, int, int], list[str]],
    tmp_path: Path,
    start_server: StartServer,
    join: Join,
    unused_tcp_port: int,
) -> None:
    """The page chats through it, others' pages do not, and every kind of end is passed on."""
    name = "chat.example.org"
    certificate = make_certificate(tmp_path)
    server = start_server("--allow-origin", f"https://{name}")
    amy = await join(server.url)
    command = configure(tmp_path, unused_tcp_port, server.port)
    environment = os.environ | {"HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        await eventually(lambda: listens(unused_tcp_port))
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=certificate))
        url = f"https://127.0.0.1:{unused_tcp_port}"
        async with aiohttp.ClientSession(url, connector=connector) as session:

            async def connect(origin: str) -> Member:
                headers = {"Host": name, "Origin": origin}
                websocket = await session.ws_connect("/chat", headers=headers, server_hostname=name)
                return Member(websocket, await websocket.receive_json(timeout=TIMEOUT))

            async with session.get("/", headers={"Host": name}, server_hostname=name) as response:
                assert "<title>" in await response.text()
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await connect("https://evil.example")
            for shame in (False, True):
                bob = await connect(f"https://{name}")
                assert await amy.receive() == joined("default", bob.user)
                if shame:
                    bob.vanish()
                else:
                    await bob.leave()
                assert await amy.receive() == left("default", bob.user, shame=shame)
            bob = await connect(f"https://{name}")
            await amy.leave()
            assert await bob.receive() == left("default", amy.user, shame=False)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            message = await bob.websocket.receive(timeout=TIMEOUT)
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
            await stopping
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.needs("deploy")
async def test_certificate(tmp_path: Path, start_script: StartScript) -> None:
    """The terminal client trusts it if it is told to."""
    certificate = make_certificate(tmp_path)
    (command,) = [command for command in COMMANDS if command.startswith("SSL_CERT_FILE")]
    variable, *_, script, option, url = shlex.split(command)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    runner = web.AppRunner(await init_app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        url = url.replace("chat.lan", f"localhost:{runner.addresses[0][1]}")
        for cafile, code in ((os.devnull, 1), (str(certificate), 0)):
            client = await start_script(script, option, url, **{variable.split("=")[0]: cafile})
            assert (await client.end(b"hello\n"))[0] == code
    finally:
        await runner.cleanup()


@pytest.mark.needs("deploy")
def test_keys_of_the_service(tmp_path: Path) -> None:
    (unit,) = blocks("deploy.md", "ini")
    (tmp_path / "chat.service").write_text(re.sub("(?<=ExecStart=)\\S+", sys.executable, unit))
    words = ("systemd-analyze", "verify", "--man=no", tmp_path / "chat.service")
    shown = subprocess.run(words, stderr=subprocess.PIPE, text=True).stderr
    assert "chat.service" not in shown, shown


async def test_command_of_the_service(start_script: StartScript, unused_tcp_port: int) -> None:
    """It starts a server that says it is up."""
    (words,) = re.findall(r"^ExecStart=\S+python (.*)$", TEXTS["deploy.md"], re.MULTILINE)
    script = await start_script(*shlex.split(words), "--port", unused_tcp_port)
    assert "Running" in await script.line()
    (command,) = [command for command in COMMANDS if command.startswith("curl")]
    url = command.split()[-1].replace("localhost:8080", f"127.0.0.1:{unused_tcp_port}")
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
    script.process.send_signal(signal.SIGTERM)
    assert (await script.end())[0] == 0
