"""How the page looks: its sizes, colours and places, long conversations, and old browsers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import re

import pytest

from server import STATIC
from tests.helpers import Join, Member, Server, StartServer
from tests.page.helpers import RANDOM, ChatPage, OpenPage

with contextlib.suppress(ImportError):  # then the tests are skipped
    from playwright.async_api import Browser, expect

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.needs("browser")]


async def test_scrolling_back(bob: ChatPage, ann: Member) -> None:
    button = bob.button("New messages")
    await ann.say(*(f"{number} {'word ' * number}" for number in range(40)))
    await expect(bob.entries().last).to_be_in_viewport()
    await bob.page.set_viewport_size({"width": 360, "height": 400})  # as a phone's keyboard does
    await expect(bob.entries().last).to_be_in_viewport(ratio=0.5)
    top = await bob.scroll("log.scrollTop - 600")
    await ann.say("new")
    await expect(button).to_be_visible()
    assert await bob.scroll("log.scrollTop") == top
    await button.press("Enter")
    await expect(button).to_be_hidden()
    await expect(bob.entries().last).to_be_in_viewport()
    # Somebody who says something wants to see it.
    await bob.scroll("0")
    await bob.enter("Message", "mine")
    await expect(bob.entries(".own")).to_be_in_viewport()


async def test_many_messages(server: Server, join: Join, bob: ChatPage, ann: Member) -> None:
    # Ten members, because the server would slow down one.
    crowd = [await join(server.url, f"Member {number}", "math") for number in range(10)]
    await bob.log.evaluate(
        "log => { window.most = 0; new MutationObserver((records) => { const added = "
        "records.flatMap((record) => [...record.addedNodes]); const size = added.reduce("
        "(sum, entry) => sum + entry.textContent.length, 0);"
        "window.most = Math.max(most, added.length, size / 1000); })"
        ".observe(log, { childList: true }); }"
    )
    for first, member in enumerate(crowd):
        await member.say(*(f"number {number}" for number in range(first, 1200, 10)))
    await asyncio.gather(*(member.say(*["x" * 20_000] * 2) for member in crowd))
    await ann.say("end")
    await expect(bob.texts().last).to_have_text("end")
    await expect(bob.entries()).to_have_count(1000)
    assert 1 < await bob.page.evaluate("most") <= 150  # or the page would stall meanwhile
    # The first entry that is left has a heading, whatever stood before it.
    head = bob.page.locator(".head").first
    assert await head.evaluate("e => getComputedStyle(e).clipPath") == "none"
    # A log that is scrolled back stays in place while old entries are removed.
    line = bob.page.get_by_text("number 995", exact=True)
    await line.scroll_into_view_if_needed()
    await bob.scroll("log.scrollTop")
    before = await line.evaluate("e => e.getBoundingClientRect().y")
    await ann.say(*["more"] * 200, "the end")
    await expect(bob.texts().last).to_have_text("the end")
    assert abs(before - await line.evaluate("e => e.getBoundingClientRect().y")) < 3


async def test_old_browsers(server: Server, browser: Browser, open_page: OpenPage) -> None:
    # Without the script, the page says what it needs.
    async with await browser.new_context(java_script_enabled=False) as context:
        page = await context.new_page()
        await page.goto(server.url)
        await expect(page.get_by_role("status")).to_contain_text("a newer browser")
    # Not before Safari 16.4, 17.3, 17.4, 17.5 and 26.2: looking behind in regular expressions and
    # ranges in media queries, relative WebSocket URLs, Map.groupBy(), light-dark(), field-sizing.
    sources = "".join(path.read_text() for path in STATIC.iterdir())
    assert not re.search(r"light-dark\(|groupBy|\((width|height) [<>]|\(\?<[=!]", sources)
    old = (
        "const New = WebSocket; CSS.supports = () => false;"
        "WebSocket = class extends New { constructor(url) { super(/^ws:/.test(url) ? url : 0); } }"
    )
    bob = await open_page(server.url, "", prepare=lambda chat: chat.page.add_init_script(old))
    await bob.is_connected("default", RANDOM)
    field = bob.field("Message")
    await field.evaluate("e => e.style.fieldSizing = 'fixed'")
    height = await field.evaluate("e => e.clientHeight")
    await field.fill("three\nlong\nlines")
    assert await field.evaluate("e => e.clientHeight >= e.scrollHeight && e.clientHeight") > height
    await field.press("Enter")
    await expect(field).to_have_value("")
    assert await field.evaluate("e => e.clientHeight") == height


async def test_looks(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    chat = await open_page(server.url, "R" * 32, "W" * 32, ChatPage.pass_through)
    axe = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
    await chat.page.evaluate(axe.read_text())

    async def check(state: str) -> None:
        """Let axe look for violations of WCAG and of good practice; in the dark, for contrast."""
        for options in ("{}", "{ runOnly: ['color-contrast'] }"):
            await chat.page.emulate_media(color_scheme="light" if options == "{}" else "dark")
            results = await chat.page.evaluate(f"axe.run({options})")
            found = [(rule["id"], rule["nodes"][0]["html"]) for rule in results["violations"]]
            assert found == [], (state, options)
            assert "color-contrast" in [rule["id"] for rule in results["passes"]]

    await check("first visit")
    # The keyboard reaches everything, and one sees where it is.
    await chat.page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    stops = [chat.field("Room"), chat.button("Join"), chat.field("Nickname"), chat.button("Rename")]
    stops += [chat.page.get_by_role("list", name="Users"), chat.button("Notify me"), chat.log]
    for stop in [*stops, chat.field("Message"), chat.button("Send")]:
        await chat.page.keyboard.press("Tab")
        await expect(stop).to_be_focused()
        # Chromium would stop at the list and the log anyway, other browsers don't.
        outline = "e => e.tabIndex === 0 && getComputedStyle(e).outline.includes('solid 2px')"
        assert await stop.evaluate(outline)
    member = await join(server.url, "M" * 32, "R" * 32)
    await member.say("See https://a.example/", f"@{'W' * 32}", "x" * 3000 + " word" * 100)
    await chat.hide()
    await member.say("new")
    await chat.hide(False)
    await chat.enter("Message", "https://a.example/" + "W" * 200)
    await expect(chat.entries(".own")).to_be_in_viewport()
    await check("talking")
    labels = ("Nickname", "Room", "Message")
    parts = [chat.status, chat.log, chat.button("Send"), *map(chat.field, labels)]
    overflow = "es => es.filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.id || e.tagName)"
    # The last are enlarged twice and four times, or phones on their side with a keyboard.
    sizes = [(360, 740), (360, 400), (768, 1024), (1920, 1080)]
    sizes += [(640, 400), (320, 200), (667, 180), (740, 197)]
    for width, height in sizes:
        await chat.page.set_viewport_size({"width": width, "height": height})
        for part in parts:
            await expect(part).to_be_in_viewport(ratio=0.99)
        await expect(chat.users.first).to_be_in_viewport(ratio=0.3)
        assert await chat.page.locator("html, body, #log").evaluate_all(overflow) == [], width
        assert await chat.log.evaluate("e => e.clientHeight") >= 110, (width, height)
    for label, text in zip(labels, ("n" * 33, "", "é" * 65536), strict=True):
        await chat.enter(label, text)
        await expect(chat.refusal(label)).not_to_have_text("")
    await expect(chat.button("Send")).to_be_in_viewport(ratio=0.99)
    await check("refused, on a phone on its side")
    await chat.page.set_viewport_size({"width": 1280, "height": 800})
    for number in range(200):
        chat.receive(action="joined", room="R" * 32, user=f"Guest {number}")
    await expect(chat.users).to_have_count(202)
    await check("200 users")
    # Where a system forces its colours, a border stays, but no background.
    await chat.page.emulate_media(forced_colors="active")
    dot = "e => parseInt(getComputedStyle(e, '::before').borderTopWidth)"
    connected = await chat.status.evaluate(dot)
    server.process.kill()  # without a close frame
    server.process.wait()
    await expect(chat.status).to_contain_text("Disconnected")
    assert connected > 2 * await chat.status.evaluate(dot) > 0
    await chat.page.emulate_media(forced_colors="none")
    await check("disconnected")
