"""The page in Chromium: what people do and see, what it does without a server, how it looks."""

import asyncio
import importlib.resources
import re
import signal
from typing import Any

import pytest
from yarl import URL

from tests.helpers import ROOT, TIMEOUT, Join, Member, StartServer, joined, left, said
from tests.page.helpers import RANDOM, ChatPage, OpenPage

pytestmark = pytest.mark.needs("browser")
reason = "it needs `uv run --group browser pytest`"
expect = pytest.importorskip("playwright.async_api", reason=reason).expect
expect.set_options(timeout=TIMEOUT * 1000)


async def test_fields(url: URL, join: Join, bob: ChatPage) -> None:
    dave = await join(url, "Dave", "physics")
    longest = "é" * ((64 * 1024 - len('{"action":"chat_message","message":""}')) // 2)
    await bob.field("Room").fill("physics ")
    await bob.button("Join").dblclick()
    await bob.is_connected("physics", "Bob")
    await bob.is_refused("Room", "")
    # What is empty or unchanged is neither sent nor refused.
    for label, text, refusal in (
        ("Message", " \n ", ""),
        ("Message", longest + "éé", "too long"),
        ("Message", longest, ""),
        ("Room", " physics", ""),
        ("Nickname", " Bobby ", ""),
        ("Nickname", "Dave", "Nickname is already in use"),
        ("Nickname", "n" * 33, "1 to 32 visible characters"),
        ("Room", "", "visible characters"),
    ):
        await bob.enter(label, text)
        await bob.is_refused(label, refusal)
        if refusal:
            await expect(bob.field(label)).to_have_value(text)
    arrival, message, renamed = await dave.catch_up()
    assert arrival == joined("physics", "Bob")
    assert message == said("Bob", longest)
    assert renamed["to_user"] == "Bobby"
    # A link leads to another room, and there is no trace of what was refused.
    await bob.page.evaluate("location.hash = '#math'")
    await bob.is_connected("math", "Bobby")
    await expect(bob.field("Room")).to_have_value("math")
    await expect(bob.field("Message")).to_be_focused()


async def test_texts(url: URL, join: Join, open_page: OpenPage) -> None:
    """They stay texts, in which addresses are links and mentions are marked."""
    room, nick = "<b>&amp;</b>", "<img src=x onerror=alert(1)>"
    bob = await open_page(url, room, "Bob (1+1)")
    eve = await join(url, nick, room)
    await expect(bob.users).to_have_text(["Bob (1+1) (you)", nick])
    last = bob.texts(".message").last
    one, two = "https://a.example/b?c=d#e", "HTTP://localhost:8080"
    for text, found in {
        f"{nick} &lt; <script>alert(1)</script> half a pair: \ud800": [],
        f"see {one}, and ({two}).": [one, two],
        "<https://a.example/ü/@Chat_(software)>!": ["https://a.example/ü/@Chat_(software)"],
        "javascript:alert(1) ftp://a.example https:// http://. www.a.example": [],
        "@bob (1+1), Bob (1+1) (BOB (1+1))": ["@bob (1+1)", "Bob (1+1)", "BOB (1+1)"],
        "Bob xBob (1+1) Bob (1+1)0": [],
        # Thousands of them would stall the page.
        f"{one} Bob (1+1) " * 1000: [one, "Bob (1+1)"] * 25,
    }.items():
        await eve.say(text)
        await expect(last).to_have_text(text)
        assert await last.locator("a, mark").all_text_contents() == found
    safe = f"a[href='{one}'][target=_blank][rel='noopener noreferrer']"
    await expect(last.locator(safe)).to_have_count(25)
    # Thousands of accents on a letter would, too.
    await eve.say("line one\nline two" + "\u0301" * 10_000)
    lines = re.compile("^line one\nline two\u0301{16}$")
    await expect(last).to_have_text(lines, use_inner_text=True)
    await expect(last).to_have_css("unicode-bidi", "plaintext")  # each line has its direction


async def test_groups(url: URL, join: Join, bob: ChatPage, ann: Member) -> None:
    # Messages in a row show one heading for five minutes.
    await ann.say("one", "two")
    await expect(bob.texts(".others")).to_have_count(2)
    await bob.page.evaluate("{ const now = Date.now() + 300_000; Date.now = () => now; }")
    await ann.say("three")
    await expect(bob.texts(".others")).to_have_count(3)
    await bob.enter("Message", "four")
    time = r"\d\d[:.]\d\d( [AP]M)?"
    heads = [re.compile(f"^{name} {time}$") for name in ("Ann", "Ann", "Ann", r"Bob \(you\)")]
    await expect(bob.log.locator(".head")).to_have_text(heads)
    seen = "es => es.map((e) => getComputedStyle(e).clipPath === 'none')"
    shown = await bob.log.locator(".head").evaluate_all(seen)
    assert shown == [True, False, True, True]
    # Changes in a row are one notice.
    notice = bob.texts(".notice").last
    await ann.ask(action="set_nick", nick="Anna")
    (await join(url, "Carol", "math")).vanish()
    await expect(notice).to_have_text("Ann is now Anna; Carol left without a goodbye")
    await ann.leave()
    await expect(notice).to_have_text("Carol left without a goodbye; Ann left")
    for name in ("Anna", *(f"Guest {number}" for number in range(14))):
        guest = await join(url, room="math")
        await guest.ask(action="set_nick", nick=name)
    await expect(notice).to_contain_text("; Anna, Guest 0 and 13 others joined")
    # A name has one colour everywhere, and others have others.
    colours = "es => new Set(es.map((e) => getComputedStyle(e).color)).size"
    assert await bob.page.get_by_text("Anna", exact=True).evaluate_all(colours) == 1
    assert await bob.users.locator("bdi").evaluate_all(colours) >= 8


async def test_keys_and_clicks(bob: ChatPage, ann: Member) -> None:
    message, keyboard = bob.field("Message"), bob.page.keyboard
    await expect(bob.users).to_have_text(["Bob (you)", "Ann"])
    # Typing anywhere reaches the message field; Tab completes a name, or else moves the focus.
    await bob.button("Join").focus()
    await keyboard.type("hello @a")
    await keyboard.press("Tab")
    await keyboard.press("Shift+Enter")
    await keyboard.type("two lines")
    await bob.button("Send").click()
    assert await ann.receive() == said("Bob", "hello @Ann \ntwo lines")
    for text in ("hello x", ""):
        await message.fill(text)
        await keyboard.press("Tab")
        await expect(bob.button("Send")).to_be_focused()
    await message.fill("hello")
    await bob.users.get_by_text("Ann").click()
    await keyboard.press("Enter")
    assert await ann.receive() == said("Bob", "hello @Ann ")
    await keyboard.press("ArrowUp")
    await expect(message).to_have_value("hello @Ann ")
    # In Safari, this Enter confirms a Chinese word, when its composition has ended.
    confirm = "e => e.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', keyCode: 229 }))"
    await message.evaluate(confirm)
    await bob.enter("Message", "next")
    assert await ann.receive() == said("Bob", "next")


async def test_address_and_storage(url: URL, join: Join, open_page: OpenPage) -> None:
    await join(url, "Zoë?&/%", "full")
    zoe = await open_page(url, "math")
    await zoe.is_connected("math", RANDOM)
    name = await zoe.field("Nickname").input_value()
    await zoe.field("Message").fill("half a\nsentence")
    await zoe.page.reload()
    await zoe.is_connected("math", name)
    await expect(zoe.field("Message")).to_have_value("half a\nsentence")
    await zoe.enter("Room", "a/b %41 #ü")
    await zoe.enter("Nickname", "Zoë?&/%")
    await zoe.is_connected("a/b %41 #ü", "Zoë?&/%")
    await zoe.page.go_back()
    await zoe.is_connected("math", "Zoë?&/%")
    for address, room in {"#math/Bob": "math/Bob", "#%E0%A4%A": "%E0%A4%A", "": "default"}.items():
        await zoe.page.evaluate("hash => location.hash = hash", address)
        await zoe.is_connected(room, "Zoë?&/%")
    # A link that leads nowhere is put right.
    for room, sentence in {"full": "already in use", "r" * 65536: "too long"}.items():
        await zoe.page.evaluate("room => location.hash = room", room)
        await zoe.is_refused("Room", sentence)
        await zoe.is_connected("default", "Zoë?&/%")
    # A new tab knows the nickname, but the name of each tab is its own.
    tab = ChatPage(await zoe.page.context.new_page())
    await tab.page.goto(f"{url}#chess")
    await tab.is_connected("chess", "Zoë?&/%")
    await tab.enter("Nickname", "Zora")
    await tab.is_connected("chess", "Zora")
    await zoe.page.reload()
    await zoe.is_connected("default", "Zoë?&/%")


async def test_hidden_tab(bob: ChatPage, ann: Member) -> None:
    await bob.page.add_init_script(
        "Notification = class { static permission = 'default';"
        "static requestPermission() { Notification.permission = 'granted'; }"
        "constructor(title, { body }) { (window.notes ??= []).push(title, body); } };"
        "window.hide = (hidden) => {"
        "Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange')); }"
    )
    await bob.page.reload()
    await bob.button("Notify me").click()
    await expect(bob.button("Notify me")).to_be_hidden()
    await ann.say("Bob, you see this")
    await expect(bob.texts().last).to_have_text("Bob, you see this")
    await bob.page.evaluate("hide(true)")
    for text, counts in {"unseen": "1", "Hello, Bob!": "@1, 2", "more": "@1, 3"}.items():
        await ann.say(text)
        await expect(bob.page).to_have_title(f"({counts}) math - aiohttp chat")
    await expect(bob.texts()).to_contain_text(["see this", "New since you left", "unseen"])
    assert await bob.page.evaluate("notes") == ["Ann in math", "Hello, Bob!"]
    await bob.page.evaluate("hide(false)")
    await expect(bob.page).to_have_title("math - aiohttp chat")
    await bob.page.clock.set_system_time("2030-01-02 12:00:00")
    await ann.say("later")
    await expect(bob.texts(".line").last).to_have_text(re.compile("^Wednesday,? 2 January 2030$"))
    time = bob.log.locator("time").last
    await expect(time).to_have_attribute("title", re.compile(r"2 January 2030, 12[:.]00"))


async def test_lost_connections(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    bob = await open_page(server.url, "math", "Bob")
    await bob.page.clock.install(time=0)
    await bob.page.clock.pause_at(1)  # from here on, time only passes in run_for()
    await bob.enter("Nickname", "Bobby")
    await bob.is_connected("math", "Bobby")
    # The server hangs, and somebody only reads: the page asks after 30 seconds, and waits for 10.
    server.process.send_signal(signal.SIGSTOP)
    await bob.page.clock.run_for(39_000)
    await expect(bob.status).to_have_text("Connected")
    await bob.page.clock.run_for(1_020)
    await expect(bob.status).to_contain_text("Disconnected")
    server.process.send_signal(signal.SIGCONT)
    await bob.page.clock.run_for(1_000)
    await bob.is_connected("math", "Bobby")
    # It dies: what it has not confirmed is in the field again.
    server.process.send_signal(signal.SIGSTOP)
    for text in ("one", "two"):
        await bob.enter("Message", text)
    await bob.field("Message").fill("three")
    server.process.kill()
    server.process.wait()
    await expect(bob.field("Message")).to_have_value("one\ntwo\nthree")
    await bob.is_refused("Message", "may have arrived")
    # The pauses are 1, 2, 4, 8, 16, 30 and 30 seconds, or up to a quarter less.
    tries: list[Any] = []
    bob.page.on("websocket", lambda websocket: tries.append(websocket))
    for pause in (1, 2, 4, 8, 16, 30, 30):
        async with bob.page.expect_console_message():  # that the try has failed
            await bob.page.clock.run_for(1_000 * pause)
    assert len(tries) == 7
    gap = re.compile(r"^You were disconnected\. Messages after \d\d[:.]\d\d.* are missing\.$")
    await expect(bob.texts(".notice").filter(has_text="missing")).to_have_text([gap, gap])
    await bob.field("Message").press("Enter")
    await bob.is_refused("Message", "not sent")
    # In the middle of a pause, it reconnects when the network is back.
    start_server(port=server.port)
    ghost = await join(server.url, "Bobby", "math")
    await bob.page.evaluate("dispatchEvent(new Event('online'))")
    await bob.is_connected("math", RANDOM)
    # The nickname is in use, perhaps by a connection that broke; then the page takes it.
    await bob.is_refused("Nickname", "Nickname is already in use")
    await ghost.leave()
    await bob.is_connected("math", "Bobby")
    await bob.is_refused("Nickname", "")
    ann = await join(server.url, "Ann", "math")
    await bob.field("Message").press("Enter")
    assert await ann.receive() == said("Bobby", "one\ntwo\nthree")
    # A page that the Back button leads to reconnects, too.
    event = "(name) => dispatchEvent(new PageTransitionEvent(name, { persisted: true }))"
    await bob.page.evaluate(event, "pagehide")
    assert await ann.receive() == left("math", "Bobby", shame=False)
    await bob.page.evaluate(event, "pageshow")
    await bob.is_connected("math", "Bobby")


async def test_old_browser_behind_a_proxy(bob: ChatPage) -> None:
    new = "CSS.supports = () => false; WebSocket = function (url) { window.url = url; };"
    await bob.page.add_init_script(new)
    for path in (ROOT / "static").iterdir():
        url = f"https://chat.test/some/where/{path.name}"
        await bob.page.route(url, lambda route, _, path=path: route.fulfill(path=path))
    await bob.page.goto("https://chat.test/some/where/index.html")
    # The WebSocket is next to the page, and encrypted as the page is.
    assert await bob.page.evaluate("url") == "wss://chat.test/some/where/chat"
    # The message field grows with its text.
    field = bob.field("Message")
    await field.evaluate("e => e.style.fieldSizing = 'fixed'")
    heights = []
    for text in ("", "three\nlong\nlines", ""):
        await field.fill(text)
        heights += await field.evaluate("e => [e.clientHeight, e.scrollHeight]")
    assert heights[0] == heights[1] < heights[2] == heights[3] > heights[4] == heights[0]
    sources = "".join(path.read_text() for path in (ROOT / "static").iterdir())
    assert "This page needs JavaScript and a newer browser" in sources
    # Safari 16.3 knows none of these.
    assert not re.search(r"light-dark\(|groupBy|\((width|height) [<>]|\(\?<[=!]", sources)


async def test_long_conversation(url: URL, join: Join, bob: ChatPage, ann: Member) -> None:
    last, button = bob.texts().last, bob.button("New messages")
    await bob.log.evaluate(
        "log => { window.added = []; new MutationObserver((records) => {"
        "for (const { addedNodes } of records) if (addedNodes.length)"
        " added.push([...addedNodes].map((node) => node.textContent).join('').length); })"
        ".observe(log, { childList: true, subtree: true }); }"
    )
    # Ten members, because the server would slow down one.
    crowd = [await join(url, f"Member {number}", "math") for number in range(10)]
    await expect(bob.users).to_have_count(12)
    assert len(await bob.page.evaluate("added")) <= 11  # or a screen reader would read some twice
    for first, member in enumerate(crowd):
        await member.say(*(f"number {number}" for number in range(first, 1200, 10)))
    await asyncio.gather(*(member.say(*["x" * 20_000] * 2) for member in crowd))
    await ann.say("end")
    await expect(last).to_have_text("end")
    await expect(bob.texts()).to_have_count(1000)
    assert max(await bob.page.evaluate("added")) < 60_000  # or the page would stall meanwhile
    # A log that is scrolled back stays in place while old entries are removed.
    line = bob.page.get_by_text("number 995", exact=True)
    await line.scroll_into_view_if_needed()
    await bob.page.evaluate("new Promise(requestAnimationFrame)")  # the page notices it
    before = await line.evaluate("e => e.getBoundingClientRect().y")
    await ann.say(*["more"] * 200, "the end")
    await expect(last).to_have_text("the end")
    assert abs(before - await line.evaluate("e => e.getBoundingClientRect().y")) < 3
    await button.press("Enter")
    await expect(button).to_be_hidden()
    await expect(last).to_be_in_viewport()
    await bob.page.set_viewport_size({"width": 360, "height": 400})  # as a phone's keyboard does
    await expect(last).to_be_in_viewport(ratio=0.5)
    # Somebody who says something wants to see it.
    await bob.field("Message").fill("mine")
    for key in ("PageDown", "Enter"):
        await bob.field("Message").press("PageUp")
        await expect(last).not_to_be_in_viewport()
        await bob.field("Message").press(key)
        await expect(last).to_be_in_viewport()


async def test_looks(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    chat = await open_page(server.url, "R" * 32, "W" * 32)
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    await chat.page.evaluate(axe.read_text())

    async def check(state: str) -> None:
        """Let axe look for violations of WCAG and of good practice; in the dark, for contrast."""
        for options in ("{}", "{ runOnly: ['color-contrast'] }"):
            await chat.page.emulate_media(color_scheme="light" if options == "{}" else "dark")
            results = await chat.page.evaluate(f"axe.run({options})")
            found = [(rule["id"], rule["nodes"][0]["html"]) for rule in results["violations"]]
            assert found == [], (state, options)

    await check("first visit")
    # The keyboard reaches everything, and one sees where it is.
    await chat.page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    stops = "Room, Join, Nickname, Rename, Users, Notify me, Conversation, Message, Send"
    for name in stops.split(", "):
        await chat.page.keyboard.press("Tab")
        stop = chat.page.locator(":focus")
        await expect(stop).to_have_accessible_name(name)
        await expect(stop).to_have_css("outline", re.compile("solid 2px"))
    member = await join(server.url, "M" * 32, "R" * 32)
    await member.say("See https://a.example/", f"@{'W' * 32}", "x" * 3000 + " word" * 100)
    await chat.enter("Message", "https://a.example/" + "W" * 200)
    await expect(chat.texts(".own")).to_be_in_viewport()
    await check("talking")
    refused = {"Nickname": "n" * 33, "Room": "", "Message": "é" * 65536}
    parts = [chat.status, chat.log, chat.button("Send"), *map(chat.field, refused)]
    fits = "es => es.every((e) => e.scrollWidth <= e.clientWidth)"
    # The last are enlarged twice and four times, and a phone on its side with its keyboard.
    for size in "360x740 768x1024 1920x1080 640x400 320x200 667x180".split():
        width, height = map(int, size.split("x"))
        await chat.page.set_viewport_size({"width": width, "height": height})
        for part in parts:
            await expect(part).to_be_in_viewport(ratio=0.99)
        await expect(chat.users.first).to_be_in_viewport(ratio=0.3)
        assert await chat.page.locator("html, body, #log").evaluate_all(fits), size
        assert await chat.log.evaluate("e => e.clientHeight") >= 110, size
    for label, text in refused.items():
        await chat.enter(label, text)
        await expect(chat.field(label)).to_have_accessible_description(re.compile("."))
    await expect(chat.button("Send")).to_be_in_viewport(ratio=0.99)
    await check("refused, on a phone on its side")
    await chat.page.set_viewport_size({"width": 1280, "height": 800})
    for _ in range(198):
        await join(server.url, room="R" * 32)
    await expect(chat.users).to_have_count(200)
    await check("200 users")
    # A dot that becomes a ring is seen where a system forces its colours, too.
    border = "e => parseInt(getComputedStyle(e, '::before').borderTopWidth)"
    connected = await chat.status.evaluate(border)
    server.stop()
    await expect(chat.status).to_contain_text("Disconnected")
    assert connected > 2 * await chat.status.evaluate(border) > 0
    await check("disconnected")
