"""The web page in a real Chromium, in front of a real server. Without a browser, only its headers are tested."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
import pytest_asyncio

from server import MAX_MESSAGE, PAGE_HEADERS, STATIC
from tests.conftest import TIMEOUT, Member, Server, members

with contextlib.suppress(ImportError):  # the browser skips a test then
    from playwright.async_api import Browser, Locator, Page, Route, WebSocketRoute, async_playwright, expect

Join = Callable[..., Awaitable[Member]]
OpenPage = Callable[..., Awaitable["Page"]]
Sockets = list[tuple["WebSocketRoute", "WebSocketRoute"]]

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)


def find_browser(last: str) -> str | None:
    """Return where this machine has a Chromium; $CHROMIUM says it first, and the last place is Playwright's own."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, COMMANDS), *PLACES, last]
    return next((path for path in candidates if path and Path(path).exists()), None)


# To start a browser takes longer than most tests, so they share one, and with it one event loop.
pytestmark = [pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """A Chromium that nobody sees."""
    pytest.importorskip("playwright.async_api", reason="Playwright is not installed: uv sync --all-groups")
    async with async_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            pytest.skip("There is no Chromium here; if there is, say where in the environment variable CHROMIUM.")
        expect.set_options(timeout=TIMEOUT * 1000)
        browser = await playwright.chromium.launch(executable_path=path)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def join() -> AsyncIterator[Join]:
    """The fixture of conftest.py, in the event loop of the browser."""
    async with members() as join:
        yield join


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open pages with `await open_page(url, room, nick)`, each in a profile of its own; they are gone after the test.

    With a nick, a page is in the room, as after a reload. `prepare(page)` is awaited before it is loaded. No page may
    report an error, or ask another host for anything.
    """
    problems: list[str] = []
    async with AsyncExitStack() as stack:

        async def open_page(url: str, room: str, nick: str = "", prepare: Any = None) -> Page:
            context = await stack.enter_async_context(await browser.new_context())
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT * 1000)
            page.on("request", lambda request: problems.append(request.url))
            page.on("websocket", lambda websocket: problems.append(websocket.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            if nick:
                await page.add_init_script(f"if (isSecureContext) sessionStorage.nick ??= {json.dumps(nick)}")
            if prepare:
                await prepare(page)
            await page.goto(f"{url}/#{quote(room)}")
            if nick:
                await is_connected(page, room, nick)
            return page

        yield open_page
    # The last of these are Chromium's own words when no server is there.
    usual = re.compile(r"(http|ws)://127\.0\.0\.1:|(https|wss)://chat\.test/|data:|WebSocket connection to ")
    assert not [problem for problem in problems if not usual.match(problem)]


@pytest_asyncio.fixture(loop_scope="module")
async def page(server: Server, open_page: OpenPage) -> Page:
    """Bob's page, in the room math."""
    return await open_page(server.url, "math", "Bob")


@pytest_asyncio.fixture(loop_scope="module")
async def ann(server: Server, join: Join, page: Page) -> Member:
    """Somebody who joined after Bob."""
    ann = await join(server.url, "Ann", "math")
    await expect(users(page)).to_have_text(["Bob (you)", "Ann"])
    return ann


async def say(member: Member, *texts: str) -> None:
    for text in texts:
        await member.websocket.send_str(
            json.dumps({"action": "chat_message", "message": text}, ensure_ascii="\ud800" in text)
        )
    await member.catch_up()


async def freeze_clock(page: Page) -> None:
    """Let the page's time stand still from here on, unless a test moves it on; page.clock has to be installed."""
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 60"))


def pass_through(sockets: Sockets) -> Callable[[Page], Awaitable[None]]:
    """Return a `prepare` that lets WebSockets pass through the test: a list gets the page's end and the server's."""

    def connect(socket: WebSocketRoute) -> None:
        sockets.append((socket, socket.connect_to_server()))

    return lambda page: page.route_web_socket("**/chat", connect)


def crash(server: Server) -> None:
    """End the process without a word to anyone."""
    server.process.kill()
    server.process.wait()
    assert server.process.stdout
    server.process.stdout.close()


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def field(page: Page, label: str) -> Locator:
    return page.get_by_role("textbox", name=label, exact=True)


def refusal(page: Page, label: str) -> Locator:
    """What stands next to a field if it is refused."""
    return page.locator("form", has=field(page, label)).get_by_role("alert")


async def enter(page: Page, label: str, text: str) -> None:
    await field(page, label).fill(text)
    await field(page, label).press("Enter")


RANDOM = re.compile(r"^User\d+$")
DISCONNECTED = re.compile("^Disconnected")


async def is_connected(page: Page, room: str, nick: str | re.Pattern[str]) -> None:
    await expect(status(page)).to_have_text("Connected")
    await expect(page).to_have_title(f"{room} - aiohttp chat")
    assert page.url.endswith("/#" + quote(room, safe="!'()*"))
    await expect(users(page).filter(has_text="(you)").locator("bdi")).to_have_text(nick)


def users(page: Page) -> Locator:
    return page.get_by_role("list", name="Users", exact=True).get_by_role("listitem")


def log(page: Page) -> Locator:
    return page.get_by_role("log")


def entries(page: Page, kind: str = "") -> Locator:
    """The entries of the log: all, or those that are a .message, .own or a .notice."""
    return log(page).locator(f"> *{kind}")


def texts(page: Page, kind: str) -> Locator:
    return entries(page, kind).locator(".text")


async def scroll(page: Page, top: str) -> float:
    """Scroll the log, and return where it then is, once the page has heard of it."""
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    return float(
        await log(page).evaluate(f"async log => {{ log.scrollTop = {top}; await {frames}; return log.scrollTop }}")
    )


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


async def test_conversation(server: Server, join: Join, page: Page, ann: Member) -> None:
    await enter(page, "Message", "Hello\tAnn")
    assert await ann.hear() == {"action": "chat_message", "message": "Hello\tAnn", "user": "Bob"}
    await expect(field(page, "Message")).to_have_value("")
    await field(page, "Message").press_sequentially("two")
    await field(page, "Message").press("Shift+Enter")
    await field(page, "Message").press_sequentially("lines")
    await page.get_by_role("button", name="Send", exact=True).click()
    assert (await ann.hear())["message"] == "two\nlines"
    await say(ann, "line one\nline two")
    await expect(texts(page, ".own")).to_have_text(["Hello\tAnn", "two\nlines"])
    await expect(texts(page, ".message:not(.own)")).to_have_text(["line one\nline two"])
    assert "\nline two" in await entries(page).last.inner_text()
    own, others, notice = (entries(page, kind).first for kind in (".own", ".message:not(.own)", ".notice"))
    await expect(own.locator(".head")).to_contain_text("Bob (you)")
    await expect(others.locator(".head")).to_contain_text("Ann")
    await expect(notice).to_contain_text("You are Bob in math")
    for entry in (own, others, notice):
        await expect(entry.locator("time")).to_have_text(re.compile(r"\d\d[:.]\d\d"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", await entry.locator("time").get_attribute("datetime") or "")
    left, right = [await entry.evaluate("e => e.getBoundingClientRect().x") for entry in (others, own)]
    assert left + 50 < right  # one can tell them apart without seeing colours

    # The fields lead elsewhere.
    await enter(page, "Nickname", " Bobby ")
    await is_connected(page, "math", "Bobby")
    await expect(texts(page, ".notice").last).to_have_text("You are Bobby now")
    dave = await join(server.url, "Dave", "chess")
    await field(page, "Room").fill("chess ")
    await page.get_by_role("button", name="Join").dblclick()
    await is_connected(page, "chess", "Bobby")
    await expect(users(page)).to_have_text(["Dave", "Bobby (you)"])
    assert await dave.hear() == {"action": "joined", "room": "chess", "user": "Bobby"}
    await expect(field(page, "Message")).to_be_focused()
    await expect(texts(page, ".notice").last).to_have_text("You are Bobby in chess")
    line = "e => getComputedStyle(e, '::before').borderTopStyle + parseInt(getComputedStyle(e, '::before').width)"
    assert re.fullmatch(r"solid\d{3}", await entries(page, ".notice").last.evaluate(line))
    # Nothing is sent for nothing, and nothing is said about it.
    for label, text in (("Message", ""), ("Message", " \n "), ("Nickname", "Bobby "), ("Room", " chess")):
        await enter(page, label, text)
        await expect(refusal(page, label)).to_have_text("")
    assert await dave.catch_up() == []


async def test_names_in_the_address_and_in_the_tab(server: Server, join: Join, open_page: OpenPage) -> None:
    await join(server.url, "Zoë?&/%", "full")
    page = await open_page(server.url, "math")
    await is_connected(page, "math", RANDOM)
    alone = "Nobody else is here. Send somebody the address of this page."
    await expect(texts(page, ".notice").last).to_have_text(alone)
    strange = "a/b %41 #ü"
    await enter(page, "Room", strange)
    await enter(page, "Nickname", "Zoë?&/%")
    await is_connected(page, strange, "Zoë?&/%")
    await page.reload()
    await is_connected(page, strange, "Zoë?&/%")
    friend = await open_page(page.url.split("/#")[0], strange)
    await is_connected(friend, strange, RANDOM)
    await expect(texts(friend, ".notice")).to_have_text([re.compile("^You are User")])

    for address, room in (("#chess", "chess"), ("#math/Bob", "math/Bob"), ("", "default"), ("#%E0%A4%A", "%E0%A4%A")):
        await page.evaluate("hash => location.hash = hash", address)
        await is_connected(page, room, "Zoë?&/%")
    await page.go_back()
    await is_connected(page, "default", "Zoë?&/%")
    # A link that leads nowhere is put right.
    for room, sentence in (("full", "Name already in use in this room."), ("r" * MAX_MESSAGE, re.compile("too long"))):
        await page.evaluate("room => location.hash = room", room)
        await expect(refusal(page, "Room")).to_have_text(sentence)
        await is_connected(page, "default", "Zoë?&/%")


async def test_text_stays_text(server: Server, join: Join, open_page: OpenPage) -> None:
    room, nick = "<b>&amp;</b>", "<img src=x onerror=alert(1)>"
    said = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt; <b>bold</b>", "\u202eright to left"]
    said += ["http://<b>x</b>", "half a pair: \ud800"]
    page = await open_page(server.url, room, "Bob")
    member = await join(server.url, nick, room)
    # Thousands of accents on a letter would freeze the page.
    await say(member, *said, "e" + "\u0301" * 30_000 + "nd")
    await expect(entries(page, ".message")).to_have_count(7)
    assert await texts(page, ".message").all_text_contents() == [*said, "e" + "\u0301" * 16 + "nd"]
    await expect(users(page)).to_have_text(["Bob (you)", nick])
    assert await page.locator("script, img, #log b, #users b").count() == 1  # the page's own script
    # What one text does to the direction of writing ends where it ends, in a message with the line.
    for place, isolation in ((".message .text", "plaintext"), ("bdi", "isolate"), ("#message", "plaintext")):
        assert await page.locator(place).first.evaluate("e => getComputedStyle(e).unicodeBidi") == isolation, place
    await enter(page, "Message", said[0])
    await expect(texts(page, ".own")).to_have_text(said[0])


LINKS = {
    "see https://a.example/b?c=d#e, and HTTP://localhost:8080.": ["https://a.example/b?c=d#e", "HTTP://localhost:8080"],
    "(https://a.example/) [http://b.example/x]": ["https://a.example/", "http://b.example/x"],
    "https://a.example/wiki/Chat_(software)!": ["https://a.example/wiki/Chat_(software)"],
    "<https://a.example/ü/@Bob>": ["https://a.example/ü/@Bob"],
    "javascript:alert(1) ftp://a.example https:// http://. www.a.example": [],
}


async def test_links_and_mentions(page: Page, ann: Member) -> None:
    for text, addresses in LINKS.items():
        await say(ann, text)
        await expect(texts(page, ".message").last).to_have_text(text)
        links = (
            await entries(page)
            .last.get_by_role("link")
            .evaluate_all("es => es.map((e) => [e.textContent, e.getAttribute('href'), e.target, e.rel])")
        )
        assert links == [[address, address, "_blank", "noopener noreferrer"] for address in addresses]
    await expect(page.locator("mark")).to_have_count(0)
    await enter(page, "Nickname", "Bob (1+1)")
    await is_connected(page, "math", "Bob (1+1)")
    await say(ann, "@Bob", "@bob (1+1), hello", "x@Bob (1+1)", "@Bob (1+1)0")
    await expect(entries(page, ".message")).to_have_count(len(LINKS) + 4)
    await expect(page.locator("mark")).to_have_text(["@bob (1+1)"])
    widths = "es => es.map((e) => getComputedStyle(e).borderInlineStartWidth)"
    assert (await texts(page, ".message").evaluate_all(widths))[-4:] == ["1px", "5px", "1px", "1px"]


async def test_one_head_for_messages_in_a_row(server: Server, join: Join, open_page: OpenPage) -> None:
    page = await open_page(server.url, "math", "Bob", lambda page: page.clock.install())
    ann = await join(server.url, "Ann", "math")
    await say(ann, "one", "two")
    await enter(page, "Message", "three")
    await expect(entries(page, ".own")).to_have_count(1)
    await say(ann, "four")
    await expect(entries(page, ".message")).to_have_count(4)
    await page.clock.fast_forward(5 * 60_000)
    await say(ann, "five", "six")
    await expect(entries(page, ".message")).to_have_count(6)
    seen = "es => es.map((e) => getComputedStyle(e).clipPath === 'none')"
    assert await page.locator(".head").evaluate_all(seen) == [True, False, True, True, True, False]
    for number, name in enumerate(["Ann", "Ann", "Bob", "Ann", "Ann", "Ann"]):  # a screen reader reads all of them
        assert name in await entries(page, ".message").nth(number).aria_snapshot()


async def test_changes_in_a_row_are_one_notice(server: Server, join: Join, page: Page, ann: Member) -> None:
    notice = texts(page, ".notice").last
    await expect(notice).to_have_text("Ann joined")
    carol = await join(server.url, room="math")
    await carol.ask(action="set_nick", nick="Carol")
    await expect(notice).to_have_text("Ann and Carol joined")
    carol.vanish()
    await expect(notice).to_have_text("Ann joined; Carol joined and left without a goodbye")
    await say(ann, "a message begins a new notice")
    await expect(entries(page, ".message")).to_have_count(1)
    await ann.ask(action="set_nick", nick="Anna")
    await expect(notice).to_have_text("Ann is now Anna")
    await ann.leave()
    await expect(notice).to_have_text("Ann left")
    anna = await join(server.url, room="math")
    await anna.ask(action="set_nick", nick="Anna")
    await expect(notice).to_have_text("Anna joined")
    for number in range(14):
        await join(server.url, f"Guest {number}", "math")
    await expect(notice).to_have_text("Anna, Guest 0 and 13 others joined")
    await expect(entries(page)).to_have_count(5)
    # A name has one colour everywhere, and others have others.
    colours = "es => [...new Set(es.map((e) => getComputedStyle(e).color))].length"
    assert await page.locator("bdi").filter(has_text=re.compile("^Anna$")).evaluate_all(colours) == 1
    assert await users(page).locator("bdi").evaluate_all(colours) > 10


async def test_refusals(server: Server, join: Join, page: Page, ann: Member) -> None:
    await join(server.url, "Bob", "chess")
    rule = "A name has 1 to 32 characters, none of them invisible."
    for label, name, sentence in (
        ("Nickname", "Ann", "Nickname is already in use"),
        ("Nickname", "n" * 33, rule),
        ("Nickname", " ", rule),
        ("Room", "r\u202e", rule),
        ("Room", "chess", "Name already in use in this room."),
    ):
        await enter(page, label, name)
        await expect(refusal(page, label)).to_have_text(sentence)
        await expect(field(page, label)).to_have_accessible_description(sentence)
        await expect(field(page, label)).to_have_value(name.strip())
        await expect(field(page, label)).to_have_attribute("aria-invalid", "true")
    await is_connected(page, "math", "Bob")
    await field(page, "Nickname").press_sequentially("x")
    await expect(refusal(page, "Nickname")).to_have_text("")
    # A name that was refused does not stay in its field when a link leads to another one.
    await page.evaluate("location.hash = '#physics'")
    await is_connected(page, "physics", "Bob")
    await expect(field(page, "Room")).to_have_value("physics")
    await expect(refusal(page, "Room")).to_have_text("")

    dave = await join(server.url, "Dave", "physics")
    longest = "é" * ((MAX_MESSAGE - len('{"action":"chat_message","message":""}')) // 2)
    await enter(page, "Message", longest + "éé")
    await expect(refusal(page, "Message")).to_contain_text(f"{MAX_MESSAGE} is the limit")
    await expect(field(page, "Message")).to_have_value(longest + "éé")
    await enter(page, "Message", longest)
    assert (await dave.hear())["message"] == longest
    await expect(refusal(page, "Message")).to_have_text("")


async def test_socket_next_to_the_page(open_page: OpenPage) -> None:
    """Below a path and behind TLS, as with a reverse proxy."""
    addresses: list[str] = []

    async def serve(route: Route) -> None:
        name = urlsplit(route.request.url).path.removeprefix("/some/where/")
        await route.fulfill(path=STATIC / (name or "index.html"), headers=PAGE_HEADERS)

    async def prepare(page: Page) -> None:
        await page.route("**/*", serve)
        await page.route_web_socket("**/*", lambda socket: addresses.append(socket.url))

    page = await open_page("https://chat.test/some/where", "math", prepare=prepare)
    await expect(status(page)).to_have_text("Connecting…")
    assert addresses == ["wss://chat.test/some/where/chat"]


# Counts the sockets that the page opened and that were closed, and how often a screen reader is to say the status.
WATCH = """document => {
  const counts = document.dataset;
  Object.assign(counts, { opened: 0, closed: 0, said: 0 });
  window.WebSocket = class extends WebSocket {
    constructor(...parameters) {
      super(...parameters);
      counts.opened++;
      this.addEventListener("close", () => counts.closed++);
    }
  };
  new MutationObserver(() => counts.said++).observe(document.querySelector("[role=status]"), { childList: true });
}"""


async def test_restart(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    server = start_server()
    page = await open_page(server.url, "math", "Bob", lambda page: page.clock.install())
    html = page.locator("html")
    await html.evaluate(WATCH)
    await freeze_clock(page)
    crash(server)
    await expect(status(page)).to_have_text(DISCONNECTED)
    for label, text in (("Message", "half a sentence"), ("Nickname", "Bobby")):
        await enter(page, label, text)
        await expect(refusal(page, label)).to_contain_text("not sent")
    for number, longest in enumerate((1, 2, 4, 8, 16, 30)):
        await expect(html).to_have_attribute("data-closed", f"{number}")
        await page.clock.run_for(750 * longest - 1)
        await expect(html).to_have_attribute("data-opened", f"{number}")
        await page.clock.run_for(250 * longest + 1)
        await expect(html).to_have_attribute("data-opened", f"{number + 1}")
    await expect(html).to_have_attribute("data-closed", "6")
    await expect(html).to_have_attribute("data-said", "1")

    # Now it waits for half a minute, but comes back at once when the network does.
    start_server(port=server.port)
    await page.evaluate("dispatchEvent(new Event('online'))")
    await is_connected(page, "math", "Bob")
    await field(page, "Nickname").press("Enter")
    await is_connected(page, "math", "Bobby")
    ann = await join(server.url, "Ann", "math")
    await field(page, "Message").press("Enter")
    assert await ann.hear() == {"action": "chat_message", "message": "half a sentence", "user": "Bobby"}
    # As it does when the Back button leads to it.
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert await ann.hear() == {"action": "left", "room": "math", "user": "Bobby", "shame": False}
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    await is_connected(page, "math", "Bobby")


async def test_connection_that_freezes(server: Server, join: Join, open_page: OpenPage) -> None:
    sockets: Sockets = []

    async def prepare(page: Page) -> None:
        await page.clock.install()
        await pass_through(sockets)(page)

    await join(server.url, "Ann", "math")
    page = await open_page(server.url, "math", "Bob", prepare)
    (page_end, server_end), *_ = sockets
    page_end.on_message(lambda message: None)
    page_end.on_close(lambda code, reason: None)  # the server does not hear of it
    await freeze_clock(page)
    for text in ("one", "two"):
        await enter(page, "Message", text)
    await field(page, "Message").fill("three")
    await page.clock.run_for(10_000)
    await expect(status(page)).to_have_text(DISCONNECTED)
    await expect(field(page, "Message")).to_have_value("one\ntwo\nthree")
    await expect(refusal(page, "Message")).to_contain_text("before the server confirmed")
    await page.clock.run_for(1_000)
    await is_connected(page, "math", RANDOM)
    await expect(refusal(page, "Nickname")).to_have_text("Nickname is already in use")
    await server_end.close()
    await is_connected(page, "math", "Bob")
    await page.clock.run_for(20)
    away = re.compile(r"^You were away for (7\d|80) s\. What was said meanwhile is missing\.$")  # since the last frame
    await expect(texts(page, ".notice").filter(has_text="away")).to_have_text([away])
    await expect(refusal(page, "Nickname")).to_have_text("")
    await expect(field(page, "Nickname")).to_have_value("Bob")
    await expect(users(page)).to_have_text(["Ann", "Bob (you)"])


async def test_odd_frames(server: Server, join: Join, open_page: OpenPage) -> None:
    sockets: Sockets = []
    ann = await join(server.url, "Ann", "math")
    page = await open_page(server.url, "math", "Bob", pass_through(sockets))
    (socket, _), *_ = sockets
    values = [None, 1, True, [], {}, ["x"], {"toString": 1}]
    fields = ("user", "room", "message", "from_user", "to_user", "users", "success")
    actions = ("connecting", "joined", "left", "nick_changed", "chat_message", "user_list", "set_nick", "toString", 7)
    frames: list[Any] = [*values, "text", {"success": True}, {"action": None, "success": False, "message": "x"}]
    frames += [{"action": action} for action in actions]
    frames += [{"action": action, **dict.fromkeys(fields, value)} for action in actions for value in values]
    frames += [{"action": action, "success": True, "users": ["Eve"], "message": "x"} for action in actions]
    for text in (*map(json.dumps, frames), "", "{", "[" * 50_000, "NaN", '"\\ud800"', b"\x00\xff"):
        socket.send(text)
    await ann.catch_up()
    await say(ann, "after it all")
    await enter(page, "Message", "still here")
    await expect(texts(page, "")).to_have_text(["You are Bob in math", "after it all", "still here"])
    await expect(users(page)).to_have_text(["Ann", "Bob (you)"])
    await is_connected(page, "math", "Bob")
    # Odd responses count as none. A message that is refused is not lost.
    odd: list[Any] = [{"action": "set_nick", "success": True}, {"action": "chat_message", "success": "true"}]

    def answer(request: str | bytes) -> None:
        for body in [*odd, {"action": "chat_message", "success": False, "message": "Not now."}]:
            socket.send(json.dumps(body))

    socket.on_message(answer)
    await enter(page, "Message", "next")
    await expect(refusal(page, "Message")).to_have_text("Not now.")
    await expect(field(page, "Message")).to_have_value("next")
    await expect(entries(page, ".own")).to_have_count(1)


@pytest.mark.parametrize("way", ["the tab is closed", "a link leads away"])
async def test_goodbye(page: Page, ann: Member, way: str) -> None:
    await (page.close() if way == "the tab is closed" else page.goto("about:blank"))
    assert await ann.hear() == {"action": "left", "room": "math", "user": "Bob", "shame": False}


async def test_scrolling_back(page: Page, ann: Member) -> None:
    button = page.get_by_role("button", name="new message")
    await say(ann, *(f"{number} {'word ' * number}" for number in range(40)))
    await expect(entries(page).last).to_be_in_viewport()
    await page.set_viewport_size({"width": 360, "height": 400})  # as the keyboard of a phone does
    await expect(entries(page).last).to_be_in_viewport(ratio=0.5)
    await expect(button).to_be_hidden()
    top = await scroll(page, "log.scrollTop - 600")
    await say(ann, "new")
    await expect(button).to_have_text("1 new message")
    await ann.ask(action="set_nick", nick="Anna")
    await say(ann, "newest")
    await expect(button).to_have_text("2 new messages")
    assert await log(page).evaluate("e => e.scrollTop") == top
    await button.click()
    await expect(button).to_be_hidden()
    await expect(entries(page).last).to_be_in_viewport()
    await expect(field(page, "Message")).to_be_focused()
    await say(ann, "and on it goes")
    await expect(entries(page).last.get_by_text("and on it goes")).to_be_in_viewport()
    # Somebody who says something wants to see it.
    await scroll(page, "0")
    await say(ann, "below")
    await expect(button).to_be_visible()
    await enter(page, "Message", "mine")
    await expect(entries(page, ".own")).to_be_in_viewport()
    await expect(button).to_be_hidden()


# Remembers the most entries that came into the log in one step.
COUNT = """log => new MutationObserver((records) => {
  window.most = Math.max(window.most ?? 0, records.reduce((sum, record) => sum + record.addedNodes.length, 0));
}).observe(log, { childList: true })"""


async def test_5000_messages(page: Page, ann: Member) -> None:
    await log(page).evaluate(COUNT)

    async def flood(numbers: range) -> None:
        for number in numbers:
            await ann.websocket.send_json({"action": "chat_message", "message": f"number {number}"})
        for _ in numbers:
            await ann.hear()

    await flood(range(5000))
    await expect(texts(page, "").last).to_have_text("number 4999")
    await expect(entries(page)).to_have_count(1000)
    await expect(texts(page, "").first).to_have_text("number 4000")
    assert await page.locator(".head").first.evaluate("e => getComputedStyle(e).clipPath") == "none"
    await expect(entries(page).last).to_be_in_viewport()
    assert 1 <= await page.evaluate("most") <= 100  # or the page would stand still meanwhile
    # Whoever reads further up goes on reading while old messages leave above.
    line = page.get_by_text("number 4500", exact=True)
    before = await line.evaluate("e => (e.scrollIntoView({block: 'center'}), e.getBoundingClientRect().y)")
    await flood(range(5000, 5300))
    await expect(page.get_by_role("button", name="300 new messages")).to_be_visible()
    await expect(texts(page, "").first).to_have_text("number 4300")
    assert abs(before - await line.evaluate("e => e.getBoundingClientRect().y")) < 3


async def test_title_of_a_hidden_tab(server: Server, join: Join, open_page: OpenPage) -> None:
    hidden = "Object.defineProperty(document, 'hidden', {configurable: true, get: () => window.isHidden === true})"
    page = await open_page(server.url, "math", "Bob", lambda page: page.add_init_script(hidden))
    ann = await join(server.url, "Ann", "math")
    await say(ann, "seen")
    await expect(entries(page, ".message")).to_have_count(1)
    await expect(page).to_have_title("math - aiohttp chat")
    await page.evaluate("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    for text, counts in (("unseen", "1"), ("@Bob!", "@1, 2"), ("unseen", "@1, 3")):
        await say(ann, text)
        await expect(page).to_have_title(f"({counts}) math - aiohttp chat")
    await page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    await expect(page).to_have_title("math - aiohttp chat")


async def test_keyboard_only(page: Page, ann: Member) -> None:
    await say(ann, *["one of many"] * 40)
    await expect(entries(page, ".message")).to_have_count(40)
    await page.keyboard.type("typed at once")
    await page.keyboard.press("Enter")
    assert (await ann.hear())["message"] == "typed at once"
    for role in ("log", "list"):  # Chromium would stop there anyway, other browsers don't
        assert await page.get_by_role(role).get_attribute("tabindex") == "0"
    send, join_, rename = (page.get_by_role("button", name=name) for name in ("Send", "Join", "Rename"))
    await page.keyboard.press("Tab")
    await expect(send).to_be_focused()
    await send.evaluate("e => e.blur()")  # behind the last one, the focus leaves for the browser's own controls
    await page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    stops = [field(page, "Room"), join_, field(page, "Nickname"), rename, page.get_by_role("list", name="Users")]
    for stop in [*stops, log(page), field(page, "Message")]:
        await page.keyboard.press("Tab")
        await expect(stop).to_be_focused()
        ring = await stop.evaluate("e => [getComputedStyle(e).outlineStyle, getComputedStyle(e).outlineWidth]")
        assert ring == ["solid", "2px"]
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Home")
    await expect(entries(page).first).to_be_in_viewport()
    await say(ann, "below")
    await expect(page.get_by_role("button", name="1 new message")).to_be_visible()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(field(page, "Message")).to_be_focused()
    await expect(entries(page).last).to_be_in_viewport()


# Returns what does not fit into the window, and what scrolls sideways.
MISFITS = """() => {
  const misfits = [...document.querySelectorAll("body, #log")].filter((e) => e.scrollWidth > e.clientWidth);
  for (const element of document.querySelectorAll("input, textarea, #message-form button, #status, #log")) {
    const { top, left, bottom, right, height } = element.getBoundingClientRect();
    if (top < 0 || left < 0 || bottom > innerHeight || right > innerWidth || height < 12) misfits.push(element);
  }
  const { scrollWidth, scrollHeight } = document.scrollingElement;
  if (scrollWidth > innerWidth || scrollHeight > innerHeight) misfits.push(document.scrollingElement);
  return misfits.map((element) => element.id || element.tagName);
}"""


async def test_sizes(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    server = start_server()
    page = await open_page(server.url, "R" * 32, "W" * 32)
    for number in range(5):
        member = await join(server.url, f"{number}" + "M" * 30, "R" * 32)
        await say(member, "x" * 3000 + " " + "word " * 100)
    await enter(page, "Message", "W" * 200)
    await expect(entries(page, ".own")).to_be_in_viewport()
    sizes = [(360, 740), (360, 400), (768, 1024), (1920, 1080)]
    sizes += [(320, 200), (740, 197), (844, 195)]  # enlarged four times; phones on their side with a keyboard
    for width, height in sizes:
        await page.set_viewport_size({"width": width, "height": height})
        assert await page.evaluate(MISFITS) == [], (width, height)
        assert await log(page).evaluate("e => e.clientHeight") >= 110, (width, height)
    for label, text in (("Nickname", "n" * 33), ("Room", ""), ("Message", "é" * MAX_MESSAGE)):
        await enter(page, label, text)
        await expect(refusal(page, label)).not_to_have_text("")
    for width, height in sizes:
        await page.set_viewport_size({"width": width, "height": height})
        await expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
    # Where a system forces its colours, a border stays, but no background.
    await page.emulate_media(forced_colors="active")
    dot = "e => parseInt(getComputedStyle(e, '::before').borderTopWidth)"
    connected = await status(page).evaluate(dot)
    crash(server)
    await expect(status(page)).to_have_text(DISCONNECTED)
    assert connected > 2 * await status(page).evaluate(dot) > 0


async def test_accessibility(start_server: Callable[..., Server], join: Join, open_page: OpenPage) -> None:
    """Let axe look for violations of WCAG and of good practice, the contrast of colours among them."""
    sockets: Sockets = []
    server = start_server()
    page = await open_page(server.url, "math", "Bob", pass_through(sockets))
    await page.evaluate(importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text())

    async def check(state: str) -> None:
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme="light" if scheme == "light" else "dark")
            results = await page.evaluate("axe.run()")
            violations = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in results["violations"]]
            assert violations == [], (state, scheme)
            assert "color-contrast" in [rule["id"] for rule in results["passes"]]

    await expect(entries(page)).to_have_count(2)
    await check("first visit")
    ann = await join(server.url, "Ann", "math")
    await say(ann, "Look at https://a.example/", "@Bob, did you?")
    await enter(page, "Message", "I did: https://a.example/")
    await expect(entries(page, ".own")).to_have_count(1)
    await check("talking")
    for label, text in (("Nickname", "n" * 33), ("Room", ""), ("Message", "é" * MAX_MESSAGE)):
        await enter(page, label, text)
        await expect(refusal(page, label)).not_to_have_text("")
    await check("refused")
    for number in range(200):
        sockets[0][0].send(json.dumps({"action": "joined", "room": "math", "user": f"Guest {number}"}))
    await expect(users(page)).to_have_count(202)
    await check("200 users")
    await page.set_viewport_size({"width": 390, "height": 844})
    await check("phone")
    crash(server)
    await expect(status(page)).to_have_text(DISCONNECTED)
    await check("disconnected")
