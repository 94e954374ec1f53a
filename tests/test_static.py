"""The web page in a real Chromium, in front of a real server. Without a browser, only its headers are tested."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from server import MAX_MESSAGE, PAGE_HEADERS, STATIC
from tests.conftest import TIMEOUT, Member, Server, members

with contextlib.suppress(ImportError):  # the browser skips a test then
    from playwright.async_api import Browser, Locator, Page, Route, WebSocketRoute, async_playwright, expect

Join = Callable[..., Awaitable[Member]]
OpenPage = Callable[..., Awaitable["Page"]]

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)
OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser(last: str) -> str | None:
    """Return where this machine has a Chromium; $CHROMIUM says it first, and the last place is Playwright's own."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, COMMANDS), *PLACES, last]
    return next((path for path in candidates if path and Path(path).exists()), None)


# To start a browser takes longer than most tests, so they share one, and with it one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that nobody sees."""
    pytest.importorskip("playwright.async_api", reason="Playwright is not installed: uv sync --all-groups")
    async with async_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("There is no Chromium here; if there is, say where in the environment variable CHROMIUM.")
        options = [*OPTIONS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else OPTIONS
        expect.set_options(timeout=TIMEOUT * 1000)
        browser = await playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def join() -> AsyncIterator[Join]:
    """The fixture of conftest.py, in the event loop of the browser."""
    async with members() as join:
        yield join


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open pages with `await open_page(url, prepare)`, each in a profile of its own; they are gone after the test.

    None may have reported an error then, or asked another host for anything.
    """
    problems: list[str] = []
    async with AsyncExitStack() as stack:

        async def open_page(url: str, prepare: Callable[[Page], Awaitable[object]] | None = None) -> Page:
            context = await stack.enter_async_context(await browser.new_context())
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT * 1000)
            host = urlsplit(url).netloc

            def check(address: str) -> None:
                if not address.startswith(("data:", "about:")) and urlsplit(address).netloc != host:
                    problems.append(f"asked for {address}")

            def hear(text: str) -> None:
                if not text.startswith("WebSocket connection to"):  # Chromium's own words when no server is there
                    problems.append(f"console: {text}")

            page.on("request", lambda request: check(request.url))
            page.on("websocket", lambda websocket: check(websocket.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: hear(message.text))
            if prepare:
                await prepare(page)
            await page.goto(url)
            return page

        yield open_page
    assert not problems


def crash(server: Server) -> None:
    """End the process without a word to anyone."""
    server.process.kill()
    server.process.wait()
    assert server.process.stdout
    server.process.stdout.close()


def field(page: Page, label: str) -> Locator:
    return page.get_by_role("textbox", name=label, exact=True)


async def enter(page: Page, label: str, text: str) -> None:
    await field(page, label).fill(text)
    await field(page, label).press("Enter")


async def is_connected(page: Page, room: str, nick: str) -> None:
    await expect(page.get_by_role("status")).to_have_text(f"Connected to {room} as {nick}")


async def stop_clock(page: Page) -> None:
    """Let the page's time stand still from here on, unless a test moves it on; page.clock has to be installed."""
    await expect(users(page)).not_to_have_count(0)  # or it might wait for an answer, and time out now
    await page.clock.pause_at(await page.evaluate("Date.now() + 60_000"))


def users(page: Page) -> Locator:
    return page.get_by_role("list", name="Users", exact=True).get_by_role("listitem")


def entries(page: Page, kind: str = "") -> Locator:
    """The entries of the log: all, or those that are a .message, .own or a .notice."""
    return page.get_by_role("log").locator(f"> *{kind}")


async def refusal(page: Page, label: str) -> Locator:
    """What stands next to a field if it is refused."""
    id_ = await field(page, label).get_attribute("aria-describedby")
    return page.locator(f"#{id_}[role=alert]")


async def distance_from_end(page: Page) -> float:
    distance: float = await page.get_by_role("log").evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight")
    return distance


async def test_headers(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        for path, content_type in (("/", "text/html"), ("/chat.js", "javascript"), ("/chat.css", "text/css")):
            async with session.get(server.url + path) as response:
                assert response.status == 200
                assert response.content_type.endswith(content_type)  # with nosniff, a browser takes nothing else
                policy = response.headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cache-Control"] == "no-cache"
                etag = response.headers["ETag"]
            async with session.get(server.url + path, headers={"If-None-Match": etag}) as response:
                assert response.status == 304


async def test_nothing_that_the_policy_forbids() -> None:
    text = (STATIC / "index.html").read_text()
    assert 'rel="icon" href="data:' in text  # or browsers would ask for /favicon.ico
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|<script(?![^>]*\ssrc=)|https?://(?!www\.w3\.org/)", text)


async def test_conversation(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann", "math")
    page = await open_page(f"{server.url}/#math/Bob")
    await is_connected(page, "math", "Bob")
    await expect(users(page)).to_have_text(["Ann", "Bob (you)"])
    await expect(field(page, "Room")).to_have_value("math")
    await expect(field(page, "Nickname")).to_have_value("Bob")
    await ann.catch_up()

    # An own message, one from somebody else and a notice.
    await enter(page, "Message", "Hello\tAnn")
    assert await ann.hear() == {"action": "chat_message", "message": "Hello\tAnn", "user": "Bob"}
    await expect(field(page, "Message")).to_have_value("")
    await field(page, "Message").fill("with the button")
    await page.get_by_role("button", name="Send", exact=True).click()
    assert (await ann.hear())["message"] == "with the button"
    await ann.ask(action="chat_message", message="line one\nline two")
    await expect(entries(page, ".message")).to_have_count(3)
    await expect(entries(page, ".own")).to_have_count(2)
    own, others, notice = (entries(page, kind).first for kind in (".own", ".message:not(.own)", ".notice"))
    await expect(own.locator(".text")).to_have_text("Hello\tAnn")
    await expect(own.locator(".head")).to_contain_text("Bob (you)")
    await expect(others.locator(".head")).to_contain_text("Ann")
    await expect(notice).to_contain_text("You are Bob in math")
    for entry in (own, others, notice):
        await expect(entry.locator("time")).to_have_text(re.compile(r"\d\d[:.]\d\d"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", await entry.locator("time").get_attribute("datetime") or "")
    own_box, others_box = await own.bounding_box(), await others.bounding_box()
    assert own_box
    assert others_box
    assert own_box["x"] > others_box["x"] + 50  # one can tell them apart without seeing colours
    assert "\nline two" in await others.inner_text()
    await field(page, "Message").press_sequentially("two")
    await field(page, "Message").press("Shift+Enter")
    await field(page, "Message").press_sequentially("lines")
    await field(page, "Message").press("Enter")
    assert (await ann.hear())["message"] == "two\nlines"

    # Users come, rename and go.
    carol = await join(server.url, "Carol", "math")
    await expect(users(page)).to_have_text(["Ann", "Bob (you)", "Carol"])
    await ann.ask(action="set_nick", nick="Anna")
    await expect(users(page)).to_have_text(["Bob (you)", "Carol", "Anna"])
    await expect(entries(page, ".notice").last).to_contain_text("Ann is now Anna")
    carol.vanish()
    await expect(entries(page, ".notice").last).to_contain_text("Carol left without a goodbye")
    await ann.leave()
    await expect(entries(page, ".notice").last).to_contain_text(re.compile("Anna left(?! without)"))
    await expect(users(page)).to_have_text(["Bob (you)"])

    # The fields lead elsewhere.
    await enter(page, "Nickname", "Bobby")
    await is_connected(page, "math", "Bobby")
    await expect(users(page)).to_have_text(["Bobby (you)"])
    dave = await join(server.url, "Dave", "chess")
    await enter(page, "Room", "chess")
    await is_connected(page, "chess", "Bobby")
    await expect(users(page)).to_have_text(["Dave", "Bobby (you)"])
    assert await dave.hear() == {"action": "joined", "room": "chess", "user": "Bobby"}
    await expect(page).to_have_title("chess - aiohttp chat")
    await expect(page).to_have_url(f"{server.url}/#chess/Bobby")


async def test_text_stays_text(server: Server, join: Join, open_page: OpenPage) -> None:
    room, nick = "<b>&amp;</b>", "<img src=x onerror=alert(1)>"
    texts = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt; <b>bold</b>", "\u202eright to left"]
    page = await open_page(f"{server.url}/#x/Bob")
    await is_connected(page, "x", "Bob")
    await enter(page, "Room", room)
    await is_connected(page, room, "Bob")
    member = await join(server.url, nick, room)
    for text in [*texts, "half a pair: \ud800", "last"]:
        await member.websocket.send_str(json.dumps({"action": "chat_message", "message": text}))
    await expect(entries(page, ".message")).to_have_count(6)
    shown = await entries(page, ".message").locator(".text").all_text_contents()
    assert shown == [*texts, "half a pair: \ud800", "last"]
    await expect(users(page)).to_have_text(["Bob (you)", nick])
    assert await page.locator("script, img, #log b, #users b").count() == 1  # the page's own script
    # What one text does to the direction of writing ends where it ends.
    for place in ("#log .message .text", "#log .user", "#log .notice bdi", "#users bdi", "#status bdi"):
        isolation = await page.locator(place).first.evaluate("e => getComputedStyle(e).unicodeBidi")
        assert isolation in ("isolate", "plaintext"), place
    await enter(page, "Message", texts[0])
    await expect(entries(page, ".own").locator(".text")).to_have_text(texts[0])


async def test_refusals_in_the_words_of_the_server(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann", "math")
    await join(server.url, "Bob", "chess")
    page = await open_page(f"{server.url}/#math/Bob")
    await is_connected(page, "math", "Bob")
    await ann.catch_up()
    long, spaced = "n" * 33, " spaced "
    for label, name, sentence in (
        ("Nickname", "Ann", "Nickname is already in use"),
        ("Nickname", long, (await ann.ask(action="set_nick", nick=long))["message"]),
        ("Nickname", "", (await ann.ask(action="set_nick", nick=""))["message"]),
        ("Room", "chess", "Name already in use in this room."),
        ("Room", spaced, (await ann.ask(action="join_room", room=spaced))["message"]),
    ):
        await enter(page, label, name)
        await expect(await refusal(page, label)).to_have_text(sentence)
        await expect(field(page, label)).to_have_value(name)
        assert await field(page, label).get_attribute("aria-invalid") == "true"
        await field(page, label).press("End")
        await field(page, label).press_sequentially("x")
        await expect(await refusal(page, label)).to_have_text("")
    await is_connected(page, "math", "Bob")
    await expect(page).to_have_url(f"{server.url}/#math/Bob")
    # A name that was refused does not stay in its field when a link leads to another one.
    await enter(page, "Room", "chess")
    await expect(await refusal(page, "Room")).not_to_have_text("")
    await page.evaluate("location.hash = '#physics'")
    await is_connected(page, "physics", "Bob")
    await expect(field(page, "Room")).to_have_value("physics")
    await expect(await refusal(page, "Room")).to_have_text("")


async def test_message_that_is_too_long(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann")
    page = await open_page(f"{server.url}/#default/Bob")
    await is_connected(page, "default", "Bob")
    await ann.catch_up()
    around = len('{"action":"chat_message","message":""}')
    longest = "é" * ((MAX_MESSAGE - around) // 2)
    await enter(page, "Message", longest + "éé")
    await expect(await refusal(page, "Message")).to_contain_text(f"{MAX_MESSAGE} is the limit")
    await expect(field(page, "Message")).to_have_value(longest + "éé")
    await enter(page, "Message", longest)
    assert (await ann.hear())["message"] == longest
    await expect(field(page, "Message")).to_have_value("")
    await expect(await refusal(page, "Message")).to_have_text("")
    await is_connected(page, "default", "Bob")


async def test_address(server: Server, join: Join, open_page: OpenPage) -> None:
    await join(server.url, "Zoë?&/%", "full")
    page = await open_page(f"{server.url}/#math")
    await expect(page.get_by_role("status")).to_have_text(re.compile(r"Connected to math as User\d+"))
    strange = "a/b %41 #ü"
    await enter(page, "Room", strange)
    await enter(page, "Nickname", "Zoë?&/%")
    await is_connected(page, strange, "Zoë?&/%")
    await page.reload()
    await is_connected(page, strange, "Zoë?&/%")

    await page.evaluate("location.hash = '#chess'")
    await is_connected(page, "chess", "Zoë?&/%")
    await page.evaluate("location.hash = '#chess/Bob'")
    await is_connected(page, "chess", "Bob")
    await expect(page).to_have_url(f"{server.url}/#chess/Bob")
    await page.go_back()
    await is_connected(page, "chess", "Zoë?&/%")
    await page.evaluate("location.hash = '#%E0%A4%A'")
    await is_connected(page, "%E0%A4%A", "Zoë?&/%")
    await page.evaluate("location.hash = ''")
    await is_connected(page, "default", "Zoë?&/%")

    # A link that leads nowhere is put right.
    await page.evaluate("location.hash = '#full'")
    await expect(await refusal(page, "Room")).to_have_text("Name already in use in this room.")
    await expect(page).to_have_url(re.compile("#default/"))
    await page.evaluate(f"location.hash = '#{'r' * MAX_MESSAGE}'")
    await expect(await refusal(page, "Room")).to_contain_text("too long")
    await expect(page).to_have_url(re.compile("#default/"))
    await is_connected(page, "default", "Zoë?&/%")


async def test_socket_next_to_the_page(open_page: OpenPage) -> None:
    """Below a path and behind TLS, as with a reverse proxy."""
    addresses: list[str] = []

    async def prepare(page: Page) -> None:
        async def serve(route: Route) -> None:
            name = urlsplit(route.request.url).path.removeprefix("/some/where/")
            await route.fulfill(path=STATIC / (name or "index.html"), headers=PAGE_HEADERS)

        await page.route("**/*", serve)
        await page.route_web_socket("**/*", lambda socket: addresses.append(socket.url))

    page = await open_page("https://chat.test/some/where/#room", prepare)
    await expect(page.get_by_role("status")).to_have_text(re.compile("^Connecting"))
    assert addresses == ["wss://chat.test/some/where/chat"]


async def test_restart(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    server = start_server()
    page = await open_page(f"{server.url}/#math/Bob", lambda page: page.clock.install())
    lonely = await open_page(server.url, lambda page: page.clock.install())
    await is_connected(page, "math", "Bob")
    await expect(lonely.get_by_role("status")).to_have_text(re.compile("^Connected"))
    before = await lonely.get_by_role("status").text_content() or ""
    await field(page, "Message").fill("half a sen")
    crash(server)  # a shutdown takes two seconds more, as the pages wait for the end of the connection
    await expect(page.get_by_role("status")).to_have_text(re.compile("^Disconnected"))
    await enter(page, "Message", "half a sentence")
    await expect(await refusal(page, "Message")).to_contain_text("not sent")
    await expect(field(page, "Message")).to_have_value("half a sentence")
    await enter(page, "Nickname", "Bobby")
    await expect(await refusal(page, "Nickname")).to_contain_text("not sent")

    start_server(port=server.port)
    await page.clock.fast_forward(30_000)
    await lonely.clock.fast_forward(30_000)
    await is_connected(page, "math", "Bob")
    await expect(lonely.get_by_role("status")).to_have_text(before)
    await expect(users(page)).to_have_text(["Bob (you)"])
    await expect(field(page, "Nickname")).to_have_value("Bobby")
    await field(page, "Nickname").press("Enter")
    await is_connected(page, "math", "Bobby")
    ann = await join(server.url, "Ann", "math")
    await field(page, "Message").press("Enter")
    assert await ann.hear() == {"action": "chat_message", "message": "half a sentence", "user": "Bobby"}


async def test_coming_back(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    server = start_server()
    page = await open_page(f"{server.url}/#math/Bob", lambda page: page.clock.install())
    await is_connected(page, "math", "Bob")
    status = page.get_by_role("status")
    await stop_clock(page)
    crash(server)
    for longest in (1, 2, 4, 8, 16, 30):
        await expect(status).to_have_text(re.compile(r"^Disconnected.* \d+ s\."))
        pause = int(re.findall(r"(\d+) s\.", await status.text_content() or "")[0])
        assert 0.75 * longest <= pause <= longest
        await status.evaluate("e => e.textContent = ''")
        await page.clock.run_for(pause * 1000)

    # Now it waits for half a minute, but comes back at once when the network does. Its name is taken by now.
    await expect(status).to_have_text(re.compile("^Disconnected"))
    start_server(port=server.port)
    await join(server.url, "Bob", "math")
    await page.evaluate("dispatchEvent(new Event('online'))")
    await expect(await refusal(page, "Nickname")).to_have_text("Nickname is already in use")
    await expect(status).to_have_text(re.compile(r"^Connected to math as User\d+$"))
    await expect(field(page, "Nickname")).to_have_value("Bob")
    # As it does when the Back button leads to it.
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    await expect(status).to_have_text(re.compile("^Disconnected"))
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    await expect(status).to_have_text(re.compile("^Connected to math"))


async def test_server_that_says_nothing(server: Server, join: Join, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/#math/Bob", lambda page: page.clock.install())
    await is_connected(page, "math", "Bob")
    await stop_clock(page)
    server.process.send_signal(signal.SIGSTOP)
    try:
        await enter(page, "Message", "one")
        await enter(page, "Message", "two")
        await field(page, "Message").fill("three")
        await page.clock.run_for(10_000)
        await expect(page.get_by_role("status")).to_have_text(re.compile("^Disconnected"))
        await expect(field(page, "Message")).to_have_value("one\ntwo\nthree")
        await expect(await refusal(page, "Message")).to_contain_text("before the server confirmed")
    finally:
        server.process.send_signal(signal.SIGCONT)
    await page.clock.run_for(1_000)
    await expect(page.get_by_role("status")).to_have_text(re.compile("^Connected to math"))


async def test_odd_frames(server: Server, join: Join, open_page: OpenPage) -> None:
    sockets: list[WebSocketRoute] = []

    async def prepare(page: Page) -> None:
        def pass_on(socket: WebSocketRoute) -> None:
            socket.connect_to_server()
            sockets.append(socket)

        await page.route_web_socket("**/chat", pass_on)

    ann = await join(server.url, "Ann", "math")
    page = await open_page(f"{server.url}/#math/Bob", prepare)
    await is_connected(page, "math", "Bob")
    await expect(users(page)).to_have_count(2)
    values = [None, 1, True, [], {}, ["x"], {"toString": 1}]
    fields = ("user", "room", "message", "from_user", "to_user", "users", "success")
    actions = ("connecting", "joined", "left", "nick_changed", "chat_message", "user_list", "set_nick", "toString", 7)
    frames: list[Any] = [*values, "text", {"action": None, "success": False, "message": "x"}]
    frames += [{"action": action} for action in actions]
    frames += [{"action": action, **dict.fromkeys(fields, value)} for action in actions for value in values]
    frames += [{"action": action, "success": True, "users": ["Eve"], "message": "x"} for action in actions]
    for frame in frames:
        sockets[0].send(json.dumps(frame))
    for text in ("", "{", "[" * 50_000, "NaN", '"\\ud800"'):
        sockets[0].send(text)
    sockets[0].send(b"\x00\xff")
    await ann.ask(action="chat_message", message="after it all")
    await expect(entries(page, ".message")).to_have_count(1)
    await expect(entries(page, ".notice")).to_have_count(1)
    await enter(page, "Message", "still here")
    await expect(entries(page, ".own")).to_have_count(1)
    await expect(users(page)).to_have_text(["Ann", "Bob (you)"])
    await is_connected(page, "math", "Bob")
    # Odd answers count as none. A message that is refused is not lost.
    odd: list[Any] = [{"action": "set_nick", "success": True}, {"action": "chat_message", "success": "true"}]
    answers = {
        "chat_message": [*odd, {"action": "chat_message", "success": False, "message": "Not now."}],
        "user_list": [{"action": "user_list", "success": True, "users": 7}],
    }

    def answer(request: str | bytes) -> None:
        for body in answers[json.loads(request)["action"]]:
            sockets[0].send(json.dumps(body))

    sockets[0].on_message(answer)
    await page.evaluate("dispatchEvent(new Event('online'))")  # the page asks for the users again
    await enter(page, "Message", "next")
    await expect(await refusal(page, "Message")).to_have_text("Not now.")
    await expect(field(page, "Message")).to_have_value("next")
    await expect(entries(page, ".own")).to_have_count(1)
    await expect(users(page)).to_have_text(["Ann", "Bob (you)"])


@pytest.mark.parametrize("way", ["the tab is closed", "a link leads away"])
async def test_goodbye(server: Server, join: Join, open_page: OpenPage, way: str) -> None:
    ann = await join(server.url, "Ann", "math")
    page = await open_page(f"{server.url}/#math/Bob")
    await is_connected(page, "math", "Bob")
    await ann.catch_up()
    await (page.close() if way == "the tab is closed" else page.goto("about:blank"))
    assert await ann.hear() == {"action": "left", "room": "math", "user": "Bob", "shame": False}


async def test_scrolling_back(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann")
    page = await open_page(f"{server.url}/#default/Bob")
    await is_connected(page, "default", "Bob")
    await ann.catch_up()
    for number in range(40):
        await ann.ask(action="chat_message", message=f"{number} {'word ' * number}")
    await expect(entries(page).last).to_be_in_viewport()
    assert await distance_from_end(page) < 1
    await page.set_viewport_size({"width": 360, "height": 400})  # as the keyboard of a phone does
    await expect(entries(page).last).to_be_in_viewport(ratio=0.5)

    button = page.get_by_role("button", name="new message")
    await expect(button).to_be_hidden()
    await page.get_by_role("log").hover()
    await page.mouse.wheel(0, -600)
    async with asyncio.timeout(TIMEOUT):
        now = 0.0
        while now < 500 or now != await distance_from_end(page):  # it moves smoothly, for some frames
            now = await distance_from_end(page)
            await page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    before = await page.get_by_role("log").evaluate("e => e.scrollTop")
    await ann.ask(action="chat_message", message="new")
    await expect(button).to_have_text("1 new message")
    await ann.ask(action="chat_message", message="newer")
    await ann.ask(action="set_nick", nick="Anna")
    await ann.ask(action="chat_message", message="newest")
    await expect(button).to_have_text("3 new messages")
    assert await page.get_by_role("log").evaluate("e => e.scrollTop") == before
    await button.click()
    await expect(button).to_be_hidden()
    await expect(entries(page).last).to_be_in_viewport()
    await expect(field(page, "Message")).to_be_focused()
    await ann.ask(action="chat_message", message="and on it goes")
    await expect(entries(page).last.get_by_text("and on it goes")).to_be_in_viewport()
    # Somebody who says something wants to see it.
    await page.get_by_role("log").evaluate("e => e.scrollTop = 0")
    await ann.ask(action="chat_message", message="below")
    await expect(button).to_be_visible()
    await enter(page, "Message", "mine")
    await expect(entries(page, ".own")).to_be_in_viewport()
    await expect(button).to_be_hidden()


async def test_5000_messages(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann")
    page = await open_page(f"{server.url}/#default/Bob")
    await is_connected(page, "default", "Bob")
    await ann.catch_up()

    async def say(numbers: range) -> None:
        for number in numbers:
            await ann.websocket.send_json({"action": "chat_message", "message": f"number {number}"})
        for _ in numbers:
            await ann.hear()

    await say(range(5000))
    await expect(entries(page).last.locator(".text")).to_have_text("number 4999")
    await expect(entries(page)).to_have_count(1000)
    await expect(entries(page).first.locator(".text")).to_have_text("number 4000")
    await expect(entries(page).last).to_be_in_viewport()
    # Whoever reads further up goes on reading while old messages leave above.
    line = page.get_by_text("number 4500", exact=True)
    await line.evaluate("e => e.scrollIntoView({block: 'center'})")
    before = await line.bounding_box()
    await say(range(5000, 5300))
    await expect(page.get_by_role("button", name="300 new messages")).to_be_visible()
    await expect(entries(page).first.locator(".text")).to_have_text("number 4300")
    after = await line.bounding_box()
    assert before
    assert after
    assert abs(before["y"] - after["y"]) < 1.5


async def test_title_of_a_hidden_tab(server: Server, join: Join, open_page: OpenPage) -> None:
    hidden = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => window.isHidden === true})"
    page = await open_page(f"{server.url}/#math/Bob", lambda page: page.add_init_script(hidden))
    await is_connected(page, "math", "Bob")
    ann = await join(server.url, "Ann", "math")
    await ann.ask(action="chat_message", message="seen")
    await expect(entries(page, ".message")).to_have_count(1)
    await expect(page).to_have_title("math - aiohttp chat")
    await page.evaluate("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    for number in range(1, 4):
        await ann.ask(action="chat_message", message="unseen")
        await expect(page).to_have_title(f"({number}) math - aiohttp chat")
    await page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page).to_have_title("math - aiohttp chat")


async def test_keyboard_only(server: Server, join: Join, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/#math/Bob")
    await is_connected(page, "math", "Bob")
    ann = await join(server.url, "Ann", "math")
    for _ in range(40):
        await ann.ask(action="chat_message", message="one of many")
    await expect(entries(page, ".message")).to_have_count(40)
    await page.keyboard.type("typed at once")
    await page.keyboard.press("Enter")
    assert (await ann.hear())["message"] == "typed at once"

    for role in ("log", "list"):  # Chromium would stop there anyway, other browsers don't
        assert await page.get_by_role(role).get_attribute("tabindex") == "0"
    stops = [page.get_by_role("button", name="Send"), field(page, "Room"), page.get_by_role("button", name="Join")]
    stops += [
        field(page, "Nickname"),
        page.get_by_role("button", name="Rename"),
        page.get_by_role("list", name="Users"),
    ]
    stops += [page.get_by_role("log"), field(page, "Message")]
    await page.keyboard.press("Tab")
    await expect(stops[0]).to_be_focused()
    await stops[0].evaluate("e => e.blur()")  # behind the last one, the focus leaves for the browser's own controls
    await page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    for stop in stops[1:]:
        await page.keyboard.press("Tab")
        await expect(stop).to_be_focused()
        ring = await stop.evaluate("e => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]")
        assert ring == ["solid", "2px"]
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Home")
    await expect(entries(page).first).to_be_in_viewport()
    await ann.ask(action="chat_message", message="below")
    await expect(page.get_by_role("button", name="1 new message")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="1 new message")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(field(page, "Message")).to_be_focused()
    await expect(entries(page).last).to_be_in_viewport()


# Returns for each selector the colour of a text and the one behind it, as [red, green, blue].
COLOURS = """selectors => selectors.map((selector) => {
  const read = (colour) => colour.match(/[0-9.]+/g).map(Number);
  let element = document.querySelector(selector);
  const text = read(getComputedStyle(element, element.value === "" ? "::placeholder" : null).color);
  while (read(getComputedStyle(element).backgroundColor)[3] === 0) element = element.parentElement;
  return [text.slice(0, 3), read(getComputedStyle(element).backgroundColor).slice(0, 3)];
})"""

# Returns what does not fit into the window, and what scrolls sideways.
MISFITS = """() => {
  const misfits = [...document.querySelectorAll("body, #log")].filter((e) => e.scrollWidth > e.clientWidth);
  for (const element of document.querySelectorAll("input, textarea, #message-form button, #status, #log")) {
    const { top, left, bottom, right, height } = element.getBoundingClientRect();
    if (top < 0 || left < 0 || bottom > innerHeight || right > innerWidth || height < 15) misfits.push(element);
  }
  const { scrollWidth, scrollHeight } = document.scrollingElement;
  if (scrollWidth > innerWidth || scrollHeight > innerHeight) misfits.push(document.scrollingElement);
  return misfits.map((element) => element.id || element.tagName);
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


async def test_looks(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    server = start_server()
    page = await open_page(f"{server.url}/#{'R' * 32}/{'W' * 32}")
    await is_connected(page, "R" * 32, "W" * 32)
    members = [await join(server.url, f"{number}" + "M" * 30, "R" * 32) for number in range(5)]
    for _ in range(8):
        await members[4].ask(action="chat_message", message="x" * 3000 + " " + "word " * 100)
    await enter(page, "Message", "W" * 200)
    await expect(entries(page, ".own")).to_be_in_viewport()
    await enter(page, "Nickname", "0" + "M" * 30)
    await expect(await refusal(page, "Nickname")).not_to_have_text("")
    await page.get_by_role("log").evaluate("e => e.scrollTop = 0")
    await members[4].ask(action="chat_message", message="below")
    await expect(page.get_by_role("button", name="1 new message")).to_be_visible()

    texts = ["h1", "h2", "label", "#user-count", "#room", "#message", "#users li", ".message:not(.own) .text"]
    texts += [".own .text", ".head", ".user", "#log time", ".notice", "#new-messages", "#status", "#nick-refusal"]
    texts += ["#place button", "#message-form button"]

    async def look(mode: Literal["light", "dark"], sizes: list[tuple[int, int]]) -> Any:
        await page.emulate_media(color_scheme=mode)
        colours = await page.evaluate(COLOURS, texts)
        for text, pair in zip(texts, colours, strict=True):
            assert contrast(*pair) >= 4.5, (mode, text, pair)
        for width, height in sizes:
            await page.set_viewport_size({"width": width, "height": height})
            assert await page.evaluate(MISFITS) == [], (mode, width, height)
        return colours

    light = await look("light", [(360, 740), (360, 400), (768, 1024), (1920, 1080)])
    dark = await look("dark", [(360, 740), (1920, 1080)])
    assert all(one != other for one, other in zip(light, dark, strict=True))
    crash(server)
    await expect(page.get_by_role("status")).to_have_text(re.compile("^Disconnected"))
    await look("light", [(360, 740)])
    await look("dark", [(1920, 1080)])
