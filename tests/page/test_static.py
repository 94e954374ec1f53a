"""The web page in a real Chromium, in front of a real server."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from server import PAGE_HEADERS, STATIC
from tests.helpers import TIMEOUT, Join, Member, Server, StartServer, joined, left, members, said
from utils import MAX_MESSAGE

with contextlib.suppress(ImportError):  # the browser skips a test then
    from playwright.async_api import (
        Browser,
        Locator,
        Page,
        Route,
        WebSocketRoute,
        async_playwright,
        expect,
    )

OpenPage = Callable[..., Awaitable["Chat"]]

RANDOM = re.compile(r"^User\d+$")
DISCONNECTED = re.compile("^Disconnected")

# To start a browser takes longer than most tests, so they share one, and with it one event loop.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("browser")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A Chromium that nobody sees."""
    expect.set_options(timeout=TIMEOUT * 1000)
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=chromium) as browser,
    ):
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def join() -> AsyncIterator[Join]:
    """The fixture of conftest.py, in the event loop of the browser."""
    async with members() as join:
        yield join


class Chat:
    """A page, and what people find on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.status = page.get_by_role("status")
        self.users = page.get_by_role("list", name="Users", exact=True).get_by_role("listitem")
        self.log = page.get_by_role("log")
        self.notice = self.texts(".notice").last
        self.sockets: list[
            tuple[WebSocketRoute, WebSocketRoute]
        ] = []  # the page's ends and the server's

    def field(self, label: str) -> Locator:
        return self.page.get_by_role("textbox", name=label, exact=True)

    def refusal(self, label: str) -> Locator:
        return self.page.locator("form", has=self.field(label)).get_by_role("alert")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def entries(self, kind: str = "") -> Locator:
        return self.log.locator(f"> *{kind}")

    def texts(self, kind: str = "") -> Locator:
        return self.entries(kind).locator(".text")

    async def enter(self, label: str, text: str) -> None:
        await self.field(label).fill(text)
        await self.field(label).press("Enter")

    async def is_connected(self, room: str, nick: str | re.Pattern[str]) -> None:
        await expect(self.status).to_have_text("Connected")
        await expect(self.page).to_have_title(f"{room} - aiohttp chat")
        assert self.page.url.endswith("/#" + quote(room, safe="!'()*"))
        await expect(self.users.filter(has_text="(you)").locator("bdi")).to_have_text(nick)

    async def scroll(self, top: str) -> Any:
        """Scroll the log, and return where it then is, once the page has heard of it."""
        await self.log.evaluate(f"e => e.scrollTop = {top}")
        frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        return await self.log.evaluate(f"e => {frames}.then(() => e.scrollTop)")

    async def pass_through(self) -> None:
        await self.page.route_web_socket(
            "**/chat", lambda s: self.sockets.append((s, s.connect_to_server()))
        )


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open pages with `await open_page(url, room, nick, prepare)`, each in a profile of its own, until the test ends.

    With a nick, a page is connected, as after a reload. No page may report an error, or ask other hosts for anything.
    """
    problems: list[str] = []
    async with contextlib.AsyncExitStack() as stack:

        async def open_page(url: str, room: str, nick: str = "", prepare: Any = None) -> Chat:
            context = await stack.enter_async_context(await browser.new_context())
            page = await context.new_page()
            page.set_default_timeout(TIMEOUT * 1000)
            page.on("request", lambda request: problems.append(request.url))
            page.on("websocket", lambda websocket: problems.append(websocket.url))
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            chat = Chat(page)
            if nick:
                await page.add_init_script(
                    f"if (isSecureContext) sessionStorage.nick ??= {json.dumps(nick)}"
                )
            if prepare:
                await prepare(chat)
            await page.goto(f"{url}/#{quote(room)}")
            if nick:
                await chat.is_connected(room, nick)
            return chat

        yield open_page
    # The last of these are Chromium's own words when no server is there.
    usual = re.compile(
        r"(http|ws)://127\.0\.0\.1:|(https|wss)://chat\.test/|data:|WebSocket connection to "
    )
    assert not [problem for problem in problems if not usual.match(problem)]


@pytest_asyncio.fixture(loop_scope="module")
async def bob(server: Server, open_page: OpenPage) -> Chat:
    """Bob's page, in the room math."""
    return await open_page(server.url, "math", "Bob")


@pytest_asyncio.fixture(loop_scope="module")
async def ann(server: Server, join: Join, bob: Chat) -> Member:
    """Somebody who joined after Bob."""
    ann = await join(server.url, "Ann", "math")
    await expect(bob.users).to_have_text(["Bob (you)", "Ann"])
    return ann


async def say(member: Member, *texts: str) -> None:
    for text in texts:
        await member.websocket.send_json({"action": "chat_message", "message": text})
    await member.catch_up()


async def test_conversation(server: Server, join: Join, bob: Chat, ann: Member) -> None:
    await bob.page.keyboard.type("Hello, Ann")
    await bob.page.keyboard.press("Enter")
    assert await ann.hear() == said("Bob", "Hello, Ann")
    await bob.page.keyboard.type("two")
    await bob.page.keyboard.press("Shift+Enter")
    await bob.page.keyboard.type("lines")
    await bob.button("Send").click()
    assert (await ann.hear())["message"] == "two\nlines"
    await say(ann, "line one\nline two")
    await expect(bob.texts(".own")).to_have_text(["Hello, Ann", "two\nlines"])
    await expect(bob.texts(".message:not(.own)")).to_have_text(["line one\nline two"])
    assert "\nline two" in await bob.entries().last.inner_text()
    kinds = (
        (".own", r"Bob \(you\)"),
        (".message:not(.own)", "Ann"),
        (".notice", "You are Bob in math"),
    )
    for kind, text in kinds:
        await expect(bob.entries(kind).first).to_contain_text(re.compile(text + r" \d\d[:.]\d\d"))
    own, others, _ = [
        await bob.entries(kind).first.evaluate("e => e.getBoundingClientRect().x")
        for kind, _ in kinds
    ]
    assert others + 50 < own  # one can tell them apart without seeing colours
    # The fields lead elsewhere.
    await bob.enter("Nickname", " Bobby ")
    await bob.is_connected("math", "Bobby")
    dave = await join(server.url, "Dave", "chess")
    await bob.field("Room").fill("chess ")
    await bob.button("Join").dblclick()
    await bob.is_connected("chess", "Bobby")
    await bob.button("Join").click()
    await expect(bob.users).to_have_text(["Dave", "Bobby (you)"])
    await expect(bob.refusal("Room")).to_have_text("")
    await expect(bob.field("Message")).to_be_focused()
    await expect(bob.notice).to_have_text("You are Bobby in chess")
    line = "e => getComputedStyle(e, '::before').borderTopStyle + parseInt(getComputedStyle(e, '::before').width)"
    assert re.fullmatch(r"solid\d{3}", await bob.entries(".notice").last.evaluate(line))
    # Nothing is sent for nothing, and nothing is said about it.
    for label, text in (
        ("Message", ""),
        ("Message", " \n "),
        ("Nickname", "Bobby "),
        ("Room", " chess"),
    ):
        await bob.enter(label, text)
        await expect(bob.refusal(label)).to_have_text("")
    assert await dave.catch_up() == [joined("chess", "Bobby")]
    # The keyboard reaches everything, and one sees where it is.
    stops = [bob.field("Room"), bob.button("Join"), bob.field("Nickname"), bob.button("Rename")]
    stops += [bob.page.get_by_role("list", name="Users"), bob.log]
    await bob.page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    for stop in [*stops, bob.field("Message"), bob.button("Send")]:
        await bob.page.keyboard.press("Tab")
        await expect(stop).to_be_focused()
        # Chromium would stop at the list and the log anyway, other browsers don't.
        assert await stop.evaluate(
            "e => e.tabIndex === 0 && getComputedStyle(e).outline.includes('solid 2px')"
        )


async def test_names_in_the_address_and_in_the_tab(
    server: Server, join: Join, open_page: OpenPage
) -> None:
    await join(server.url, "Zoë?&/%", "full")
    zoe = await open_page(server.url, "math")
    await zoe.is_connected("math", RANDOM)
    await expect(zoe.notice).to_have_text(
        "Nobody else is here. Send somebody the address of this page."
    )
    await zoe.field("Room").fill(strange := "a/b %41 #ü")
    await zoe.field("Nickname").fill("Zoë?&/%")
    await zoe.page.evaluate(
        "for (const form of document.forms) form.requestSubmit()"
    )  # faster than any response
    await zoe.is_connected(strange, "Zoë?&/%")
    await zoe.page.reload()
    await zoe.is_connected(strange, "Zoë?&/%")
    friend = await open_page(server.url, strange)
    await expect(friend.users).to_have_count(2)
    await expect(friend.notice).to_have_text(re.compile(r"^You are User\d+ in a/b"))
    name = await friend.field("Nickname").input_value()
    await friend.page.reload()
    await friend.is_connected(strange, name)
    for address, room in (
        ("#chess", "chess"),
        ("#math/Bob", "math/Bob"),
        ("", "default"),
        ("#%E0%A4%A", "%E0%A4%A"),
    ):
        await zoe.page.evaluate("hash => location.hash = hash", address)
        await zoe.is_connected(room, "Zoë?&/%")
    await zoe.page.go_back()
    await zoe.is_connected("default", "Zoë?&/%")
    # A link that leads nowhere is put right.
    for room, sentence in (
        ("full", re.compile("already in use")),
        ("r" * MAX_MESSAGE, re.compile("too long")),
    ):
        await zoe.page.evaluate("room => location.hash = room", room)
        await expect(zoe.refusal("Room")).to_have_text(sentence)
        await zoe.is_connected("default", "Zoë?&/%")


async def test_text_stays_text(server: Server, join: Join, open_page: OpenPage) -> None:
    room, nick = "<b>&amp;</b>", "<img src=x onerror=alert(1)>"
    said = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "&lt; <b>bold</b>",
        "\u202eright to left",
    ]
    said += ["http://<b>x</b>", "half a pair: \ud800"]
    bob = await open_page(server.url, room, "Bob")
    member = await join(server.url, nick, room)
    await say(member, *said, "e" + "\u0301" * 10_000 + "nd")
    await expect(bob.entries(".message")).to_have_count(7)
    # Thousands of accents on a letter would freeze the page.
    assert await bob.texts(".message").all_text_contents() == [*said, "e" + "\u0301" * 16 + "nd"]
    await expect(bob.users).to_have_text(["Bob (you)", nick])
    assert (
        await bob.page.locator("script, img, #log b, #users b").count() == 1
    )  # the page's own script
    # What one text does to the direction of writing ends where it ends, in a message with the line.
    for place, isolation in (
        (".message .text", "plaintext"),
        ("bdi", "isolate"),
        ("#message", "plaintext"),
    ):
        assert (
            await bob.page.locator(place).first.evaluate("e => getComputedStyle(e).unicodeBidi")
            == isolation
        ), place


async def test_links_and_mentions(bob: Chat, ann: Member) -> None:
    messages = {
        "see https://a.example/b?c=d#e, and HTTP://localhost:8080.": [
            "https://a.example/b?c=d#e",
            "HTTP://localhost:8080",
        ],
        "(https://a.example/) [http://b.example/x]": ["https://a.example/", "http://b.example/x"],
        "https://a.example/wiki/Chat_(software)!": ["https://a.example/wiki/Chat_(software)"],
        "<https://a.example/ü/@Bob>": ["https://a.example/ü/@Bob"],
        "javascript:alert(1) ftp://a.example https:// http://. www.a.example": [],
    }
    links = "es => es.map((e) => [e.textContent, e.getAttribute('href'), e.target, e.rel])"
    for text, addresses in messages.items():
        await say(ann, text)
        await expect(bob.texts(".message").last).to_have_text(text)
        found = await bob.entries().last.get_by_role("link").evaluate_all(links)
        assert found == [
            [address, address, "_blank", "noopener noreferrer"] for address in addresses
        ]
    await bob.enter("Nickname", "Bob (1+1)")
    await bob.is_connected("math", "Bob (1+1)")
    await say(ann, "@Bob", "@bob (1+1), hello", "x@Bob (1+1)", "@Bob (1+1)0")
    await expect(bob.entries(".message")).to_have_count(len(messages) + 4)
    await expect(bob.page.locator("mark")).to_have_text(["@bob (1+1)"])
    widths = await bob.texts(".message").evaluate_all(
        "es => es.map((e) => getComputedStyle(e).borderInlineStartWidth)"
    )
    assert widths[-4:] == ["1px", "5px", "1px", "1px"]
    # They count first in the title of a hidden tab.
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    await bob.page.evaluate(hide, True)
    for text, counts in (("unseen", "1"), ("@Bob (1+1)!", "@1, 2"), ("unseen", "@1, 3")):
        await say(ann, text)
        await expect(bob.page).to_have_title(f"({counts}) math - aiohttp chat")
    await bob.page.evaluate(hide, False)
    await expect(bob.page).to_have_title("math - aiohttp chat")
    await bob.page.evaluate(
        "delete document.hidden"
    )  # or else it would connect again while it is closed


async def test_what_stands_together(server: Server, join: Join, bob: Chat, ann: Member) -> None:
    # What one user does in a row is one notice, and so is what many do.
    await expect(bob.notice).to_have_text("Ann joined")
    carol = await join(server.url, room="math")
    await carol.ask(action="set_nick", nick="Carol")
    await expect(bob.notice).to_have_text("Ann and Carol joined")
    carol.vanish()
    await expect(bob.notice).to_have_text("Ann joined; Carol joined and left without a goodbye")
    # Messages of one user in a row have one head, for five minutes, but a screen reader reads one for each.
    await say(ann, "one", "two")
    await bob.enter("Message", "three")
    await expect(bob.entries(".own")).to_have_count(1)
    await say(ann, "four")
    await expect(bob.entries(".message")).to_have_count(4)
    await bob.page.evaluate("{ const now = Date.now() + 300_000; Date.now = () => now; }")
    await say(ann, "five", "six")
    await expect(bob.entries(".message")).to_have_count(6)
    for number, name in enumerate(["Ann", "Ann", "Bob", "Ann", "Ann", "Ann"]):
        assert name in await bob.entries(".message").nth(number).aria_snapshot()
    seen = await bob.page.locator(".head").evaluate_all(
        "es => es.map((e) => getComputedStyle(e).clipPath === 'none')"
    )
    assert seen == [True, False, True, True, True, False]
    await ann.ask(action="set_nick", nick="Anna")
    await expect(bob.notice).to_have_text("Ann is now Anna")
    await ann.leave()
    await expect(bob.notice).to_have_text("Ann left")
    for name in ("Anna", *(f"Guest {number}" for number in range(14))):
        member = await join(server.url, room="math")
        await member.ask(action="set_nick", nick=name)
    await expect(bob.notice).to_have_text("Anna, Guest 0 and 13 others joined")
    await expect(bob.entries(".notice")).to_have_count(4)
    # A name has one colour everywhere, and others have others.
    colours = "es => new Set(es.map((e) => getComputedStyle(e).color)).size"
    assert (
        await bob.page.locator("bdi").filter(has_text=re.compile("^Anna$")).evaluate_all(colours)
        == 1
    )
    assert await bob.users.locator("bdi").evaluate_all(colours) > 10


async def test_refusals(server: Server, join: Join, bob: Chat, ann: Member) -> None:
    await join(server.url, "Bob", "chess")
    rule = "A name has 1 to 32 characters, none of them invisible."
    refused = [
        ("Nickname", "n" * 33, rule),
        ("Nickname", " ", rule),
        ("Nickname", "Ann", "Nickname is already in use"),
    ]
    for label, name, sentence in [
        *refused,
        ("Room", "r\u202e", rule),
        ("Room", "chess", "Name already in use in this room."),
    ]:
        await bob.enter(label, name)
        await expect(bob.refusal(label)).to_have_text(sentence)
        await expect(bob.field(label)).to_have_accessible_description(sentence)
        await expect(bob.field(label)).to_have_value(name.strip())
        await expect(bob.field(label)).to_have_attribute("aria-invalid", "true")
    longest = "é" * ((MAX_MESSAGE - len('{"action":"chat_message","message":""}')) // 2)
    await bob.enter("Message", longest + "éé")
    await expect(bob.refusal("Message")).to_contain_text(f"{MAX_MESSAGE} is the limit")
    await bob.enter("Message", longest)
    assert (await ann.hear())["message"] == longest
    await bob.field("Nickname").press_sequentially("x")
    await expect(bob.refusal("Nickname")).to_have_text("")
    # A name that was refused does not stay in its field when a link leads to another one.
    await bob.page.evaluate("location.hash = '#physics'")
    await bob.is_connected("physics", "Bob")
    await expect(bob.field("Room")).to_have_value("physics")


async def test_socket_next_to_the_page(open_page: OpenPage) -> None:
    """Below a path and behind TLS, as with a reverse proxy."""

    def serve(route: Route) -> Awaitable[None]:
        return route.fulfill(
            path=STATIC / (route.request.url.rpartition("/")[2] or "index.html"),
            headers=PAGE_HEADERS,
        )

    chat = await open_page(
        "https://chat.test/some/where", "math", prepare=lambda chat: chat.page.route("**/*", serve)
    )
    async with chat.page.expect_websocket() as websocket:
        await chat.page.reload()
    assert (await websocket.value).url == "wss://chat.test/some/where/chat"


async def test_restart(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    bob = await open_page(server.url, "math", "Bob")
    tries: list[Any] = []
    bob.page.on("websocket", lambda websocket: tries.append(websocket))
    count = "e => new MutationObserver(() => window.said = (window.said ?? 0) + 1).observe(e, { childList: true })"
    await bob.status.evaluate(count)
    await bob.page.clock.install()
    await bob.page.clock.pause_at(await bob.page.evaluate("Date.now() / 1000 + 1"))
    server.process.kill()  # without a word to anyone
    server.process.wait()
    await expect(bob.status).to_have_text(DISCONNECTED)
    for label, text in (("Message", "half a sentence"), ("Nickname", "Bobby")):
        await bob.enter(label, text)
        await expect(bob.refusal(label)).to_contain_text("not sent")
    for _ in range(
        130
    ):  # 65 seconds; the pauses are 1, 2, 4, 8, 16 and 30 seconds, or up to a quarter less
        await bob.page.clock.run_for(500)
    assert len(tries) == 6
    assert await bob.page.evaluate("said") == 1  # and a screen reader says no more
    # It waits for half a minute now, but comes back at once when the network does.
    start_server(port=server.port)
    await bob.page.evaluate("dispatchEvent(new Event('online'))")
    await bob.is_connected("math", "Bob")
    await bob.field("Nickname").press("Enter")
    await bob.is_connected("math", "Bobby")
    ann = await join(server.url, "Ann", "math")
    await bob.field("Message").press("Enter")
    assert await ann.hear() == said("Bobby", "half a sentence")
    # As it does when the Back button leads to it.
    await bob.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    assert await ann.hear() == left("math", "Bobby", shame=False)
    await bob.page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    await bob.is_connected("math", "Bobby")


async def test_connection_that_freezes(server: Server, join: Join, open_page: OpenPage) -> None:
    await join(server.url, "Ann", "math")
    bob = await open_page(server.url, "math", "Bob", Chat.pass_through)
    (page_end, server_end), *_ = bob.sockets
    page_end.on_message(lambda message: None)
    page_end.on_close(lambda code, reason: None)  # the server does not hear of it
    await bob.page.clock.install()
    await bob.page.clock.pause_at(await bob.page.evaluate("Date.now() / 1000 + 60"))
    for text in ("one", "two"):
        await bob.enter("Message", text)
    await bob.field("Message").fill("three")
    await bob.page.clock.run_for(10_000)
    await expect(bob.field("Message")).to_have_value("one\ntwo\nthree")
    await expect(bob.refusal("Message")).to_contain_text("before the server confirmed")
    await bob.page.clock.run_for(1_000)
    await bob.is_connected("math", RANDOM)
    await expect(bob.refusal("Nickname")).to_have_text("Nickname is already in use")
    await expect(bob.field("Nickname")).to_have_value("Bob")
    await server_end.close()
    await bob.is_connected("math", "Bob")
    await bob.page.clock.run_for(20)
    away = re.compile(
        r"^You were away for 7\d s\. What was said meanwhile is missing\.$"
    )  # since the last frame
    await expect(bob.texts(".notice").filter(has_text="away")).to_have_text([away])
    await expect(bob.refusal("Nickname")).to_have_text("")


async def test_odd_frames(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann", "math")
    bob = await open_page(server.url, "math", "Bob", Chat.pass_through)
    (socket, _), *_ = bob.sockets
    values = [None, 1, True, [], {}, ["x"], {"toString": 1}]
    fields = ("user", "room", "message", "from_user", "to_user", "users", "success")
    actions = (
        "connecting",
        "joined",
        "left",
        "nick_changed",
        "chat_message",
        "user_list",
        "set_nick",
        "toString",
        7,
    )
    frames: list[Any] = [
        *values,
        "text",
        *({"success": True, "message": text} for text in (None, "x")),
    ]
    frames += [{"action": action} for action in actions]
    frames += [
        {"action": action, **dict.fromkeys(fields, value)} for action in actions for value in values
    ]
    frames += [
        {"action": action, "success": True, "users": ["Eve"], "message": "x"} for action in actions
    ]
    for text in [*map(json.dumps, frames), "", "{", "[" * 50_000, "NaN", '"\\ud800"']:
        socket.send(text)
    socket.send(b"\x00\xff")
    await say(ann, "after it all")
    await bob.enter("Message", "still here")
    await expect(bob.texts()).to_have_text(["You are Bob in math", "after it all", "still here"])
    await expect(bob.users).to_have_text(["Ann", "Bob (you)"])
    # Odd responses count as none. A message that is refused is not lost.
    responses: list[Any] = [
        {"action": "set_nick", "success": True},
        {"action": "chat_message", "success": "true"},
    ]
    responses += [{"action": "chat_message", "success": False, "message": "Not now."}]
    socket.on_message(lambda request: list(map(socket.send, map(json.dumps, responses))))
    await bob.enter("Message", "next")
    await expect(bob.refusal("Message")).to_have_text("Not now.")
    await expect(bob.field("Message")).to_have_value("next")


async def test_scrolling_back(bob: Chat, ann: Member) -> None:
    button = bob.button("new message")
    await say(ann, *(f"{number} {'word ' * number}" for number in range(40)))
    await expect(bob.entries().last).to_be_in_viewport()
    await bob.page.set_viewport_size(
        {"width": 360, "height": 400}
    )  # as the keyboard of a phone does
    await expect(bob.entries().last).to_be_in_viewport(ratio=0.5)
    top = await bob.scroll("e.scrollTop - 600")
    await say(ann, "new")
    await expect(button).to_have_text("1 new message")
    await ann.ask(action="set_nick", nick="Anna")
    await say(ann, "newest")
    await expect(button).to_have_text("2 new messages")
    assert await bob.scroll("e.scrollTop") == top
    await button.press("Enter")
    await expect(button).to_be_hidden()
    await expect(bob.field("Message")).to_be_focused()
    await expect(bob.entries().last).to_be_in_viewport()
    # Somebody who says something wants to see it.
    await bob.scroll("0")
    await say(ann, "below")
    await bob.enter("Message", "mine")
    await expect(bob.entries(".own")).to_be_in_viewport()


async def test_5000_messages(bob: Chat, ann: Member) -> None:
    most = "Math.max(window.most ?? 0, records.reduce((sum, record) => sum + record.addedNodes.length, 0))"
    observer = f"new MutationObserver((records) => window.most = {most})"
    await bob.log.evaluate(f"log => {observer}.observe(log, {{ childList: true }})")
    await say(ann, *(f"number {number}" for number in range(5000)))
    await expect(bob.texts().last).to_have_text("number 4999")
    await expect(bob.entries()).to_have_count(1000)
    assert (
        await bob.page.locator(".head").first.evaluate("e => getComputedStyle(e).clipPath")
        == "none"
    )
    assert 1 <= await bob.page.evaluate("most") <= 100  # or the page would stand still meanwhile
    # Whoever reads further up goes on reading while old messages leave above.
    line, place = (
        bob.page.get_by_text("number 4500", exact=True),
        "e => e.getBoundingClientRect().y",
    )
    await bob.scroll("e.scrollHeight / 2")
    before = await line.evaluate(place)
    await say(ann, *(f"number {number}" for number in range(5000, 5300)))
    await expect(bob.button("300 new messages")).to_be_visible()
    assert await bob.entries().count() == 1000
    assert abs(before - await line.evaluate(place)) < 3


async def test_looks(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    chat = await open_page(server.url, "R" * 32, "W" * 32, Chat.pass_through)
    await chat.page.evaluate(
        importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    )
    sizes = [(360, 740), (360, 400), (768, 1024), (1920, 1080)]
    sizes += [
        (320, 200),
        (740, 197),
        (844, 195),
    ]  # enlarged four times; phones on their side with a keyboard

    async def check(state: str) -> None:
        """Let axe look for violations of WCAG and of good practice, the contrast of colours among them."""
        for dark in (False, True):
            await chat.page.emulate_media(color_scheme="dark" if dark else "light")
            results = await chat.page.evaluate("axe.run()")
            violations = [
                (rule["id"], [node["html"] for node in rule["nodes"]])
                for rule in results["violations"]
            ]
            assert violations == [], (state, dark)
            assert "color-contrast" in [rule["id"] for rule in results["passes"]]

    await expect(chat.entries()).to_have_count(2)
    await check("first visit")
    member = await join(server.url, "M" * 32, "R" * 32)
    await say(member, "See https://a.example/", f"@{'W' * 32}", "x" * 3000 + " word" * 100)
    await chat.enter("Message", "https://a.example/" + "W" * 200)
    await expect(chat.entries(".own")).to_be_in_viewport()
    await check("talking")
    labels = ("Nickname", "Room", "Message")
    for width, height in sizes:
        await chat.page.set_viewport_size({"width": width, "height": height})
        for part in (chat.status, chat.log, chat.button("Send"), *map(chat.field, labels)):
            await expect(part).to_be_in_viewport(ratio=0.99)
        overflow = (
            "es => es.filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.id || e.tagName)"
        )
        assert await chat.page.locator("html, body, #log").evaluate_all(overflow) == [], (
            width,
            height,
        )
        assert await chat.log.evaluate("e => e.clientHeight") >= 110, (width, height)
    for label, text in zip(labels, ("n" * 33, "", "é" * MAX_MESSAGE), strict=True):
        await chat.enter(label, text)
        await expect(chat.refusal(label)).not_to_have_text("")
    for width, height in reversed(sizes):
        await chat.page.set_viewport_size({"width": width, "height": height})
        await expect(chat.button("Send")).to_be_in_viewport(ratio=0.99)
    await check("refused, on a phone")
    await chat.page.set_viewport_size({"width": 1280, "height": 800})
    await check("refused")
    for number in range(200):
        chat.sockets[0][0].send(
            json.dumps({"action": "joined", "room": "R" * 32, "user": f"Guest {number}"})
        )
    await expect(chat.users).to_have_count(202)
    await check("200 users")
    # Where a system forces its colours, a border stays, but no background.
    await chat.page.emulate_media(forced_colors="active")
    dot = "e => parseInt(getComputedStyle(e, '::before').borderTopWidth)"
    connected = await chat.status.evaluate(dot)
    server.process.kill()  # without a word to anyone
    server.process.wait()
    await expect(chat.status).to_have_text(DISCONNECTED)
    assert connected > 2 * await chat.status.evaluate(dot) > 0
    await chat.page.emulate_media(forced_colors="none")
    await check("disconnected")
