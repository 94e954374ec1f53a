"""What people do on the page, and what they see of each other."""

from __future__ import annotations

import contextlib
import re

import pytest

from tests.helpers import Join, Member, Server, joined, said
from tests.page.helpers import RANDOM, ChatPage, OpenPage

with contextlib.suppress(ImportError):  # then the tests are skipped
    from playwright.async_api import expect

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.needs("browser")]


async def test_conversation(server: Server, join: Join, bob: ChatPage, ann: Member) -> None:
    await bob.page.keyboard.type("Hello, Ann")
    await bob.page.keyboard.press("Enter")
    assert await ann.receive() == said("Bob", "Hello, Ann")
    await bob.page.keyboard.type("two")
    await bob.page.keyboard.press("Shift+Enter")
    await bob.page.keyboard.type("lines")
    await bob.button("Send").click()
    assert await ann.receive() == said("Bob", "two\nlines")
    await ann.say("line one\nline two")
    await expect(bob.texts(".own")).to_have_text(["Hello, Ann", "two\nlines"])
    assert "\nline two" in await bob.texts(".others").inner_text()
    heads = {".own": r"Bob \(you\)", ".others": "Ann", ".line": "You are Bob in math"}
    for kind, text in heads.items():
        await expect(bob.entries(kind).first).to_contain_text(re.compile(text + r" \d\d[:.]\d\d"))
    # The fields change the name and the room.
    await bob.enter("Nickname", " Bobby ")
    await bob.is_connected("math", "Bobby")
    dave = await join(server.url, "Dave", "chess")
    await bob.field("Room").fill("chess ")
    await bob.button("Join").dblclick()
    await bob.is_connected("chess", "Bobby")
    await bob.button("Join").click()
    await expect(bob.users).to_have_text(["Dave", "Bobby (you)"])
    await expect(bob.field("Message")).to_be_focused()
    # Empty or unchanged input is neither sent nor refused.
    for label, text in {"Message": " \n ", "Nickname": "Bobby ", "Room": " chess"}.items():
        await bob.enter(label, text)
        await expect(bob.refusal(label)).to_have_text("")
    assert await dave.catch_up() == [joined("chess", "Bobby")]


async def test_text_stays_text(server: Server, join: Join, open_page: OpenPage) -> None:
    room, nick = "<b>&amp;</b>", "<img src=x onerror=alert(1)>"
    texts = ["<script>alert(1)</script>", nick, "&lt; http://<b>x</b>", "half a pair: \ud800"]
    bob = await open_page(server.url, room, "Bob")
    member = await join(server.url, nick, room)
    await member.say(*texts, "e" + "\u0301" * 10_000 + "nd")
    await expect(bob.texts(".message")).to_have_count(5)
    # Thousands of accents on a letter would stall the page.
    assert await bob.texts(".message").all_text_contents() == [*texts, "e" + "\u0301" * 16 + "nd"]
    await expect(bob.users).to_have_text(["Bob (you)", nick])
    assert await bob.page.locator("body script, img, #log b, #users b").count() == 0
    # The direction of a text does not reach beyond it; in a message it ends with the line.
    for place, value in {"bdi": "isolate", ".message .text": "plaintext"}.items():
        text = bob.page.locator(place).first
        assert await text.evaluate("e => getComputedStyle(e).unicodeBidi") == value


async def test_links_and_mentions(bob: ChatPage, ann: Member) -> None:
    await bob.enter("Nickname", "Bob (1+1)")
    await bob.is_connected("math", "Bob (1+1)")
    one, two = "https://a.example/b?c=d#e", "HTTP://localhost:8080"
    messages = {
        f"see {one}, and ({two}).": [one, two],
        "https://a.example/wiki/Chat_(software)!": ["https://a.example/wiki/Chat_(software)"],
        "<https://a.example/ü/@Bob(1+1)>": ["https://a.example/ü/@Bob(1+1)"],
        "javascript:alert(1) ftp://a.example https:// http://. www.a.example": [],
        "@bob (1+1), hello": ["@bob (1+1)"],
        "Bob (1+1) (BOB (1+1))": ["Bob (1+1)", "BOB (1+1)"],
        "Bob xBob (1+1) Bob (1+1)0": [],
        # Thousands of them would stall the page.
        f"{one} Bob (1+1) " * 1000: [one, "Bob (1+1)"] * 25,
    }
    for text, found in messages.items():
        await ann.say(text)
        await expect(bob.texts(".message").last).to_have_text(text)
        assert await bob.texts().last.locator("a, mark").all_text_contents() == found
    safe = f"a[href='{one}'][target=_blank][rel='noopener noreferrer']"
    await expect(bob.texts().last.locator(safe)).to_have_count(25)


async def test_groups(server: Server, join: Join, bob: ChatPage, ann: Member) -> None:
    # Changes in a row are one notice; a screen reader reads each change once.
    notice = bob.texts(".notice").last
    await expect(notice).to_have_text("Ann joined")
    await bob.log.evaluate(
        "log => { window.additions = 0; new MutationObserver((records) => { additions += "
        "records.filter((record) => record.addedNodes.length).length; })"
        ".observe(log, { childList: true, subtree: true }); }"
    )
    carol = await join(server.url, room="math")
    await carol.ask(action="set_nick", nick="Carol")
    await expect(notice).to_have_text("Ann and Carol joined")
    carol.vanish()
    await expect(notice).to_have_text("Ann joined; Carol left without a goodbye")
    assert await bob.page.evaluate("additions") <= 3
    # Messages in a row show one heading for five minutes.
    await ann.say("one", "two")
    await bob.enter("Message", "three")
    await expect(bob.entries(".own")).to_have_count(1)
    await ann.say("four")
    await expect(bob.entries(".message")).to_have_count(4)
    await bob.page.evaluate("{ const now = Date.now() + 300_000; Date.now = () => now; }")
    await ann.say("five", "six")
    await expect(bob.entries(".message")).to_have_count(6)
    seen = "es => es.map((e) => getComputedStyle(e).clipPath === 'none')"
    shown = await bob.page.locator(".head").evaluate_all(seen)
    assert shown == [True, False, True, True, True, False]
    await ann.ask(action="set_nick", nick="Anna")
    await expect(notice).to_have_text("Ann is now Anna")
    await ann.leave()
    await expect(notice).to_have_text("Ann left")
    for name in ("Anna", *(f"Guest {number}" for number in range(14))):
        guest = await join(server.url, room="math")
        await guest.ask(action="set_nick", nick=name)
    await expect(notice).to_have_text("Anna, Guest 0 and 13 others joined")
    # A name has one colour everywhere, and others have others.
    colours = "es => [...new Set(es.map((e) => getComputedStyle(e).color))]"
    anna = await bob.page.get_by_text("Anna", exact=True).evaluate_all(colours)
    await join(server.url, "Emma", "math")
    assert [*anna] != await bob.users.get_by_text("Emma").evaluate_all(colours)
    assert len(anna) == 1 < 8 <= len(await bob.users.locator("bdi").evaluate_all(colours))


async def test_refusals(server: Server, join: Join, bob: ChatPage, ann: Member) -> None:
    await join(server.url, "Bob", "chess")
    refused = [
        ("Nickname", "n" * 33, "32 "),
        ("Nickname", "Ann", "Nickname is already in use"),
        ("Room", "chess", "Name already in use in this room."),
    ]
    for label, name, sentence in refused:
        await bob.enter(label, name)
        await expect(bob.refusal(label)).to_contain_text(sentence)
        description = await bob.refusal(label).inner_text()
        await expect(bob.field(label)).to_have_accessible_description(description)
        await expect(bob.field(label)).to_have_value(name.strip())
        await expect(bob.field(label)).to_have_attribute("aria-invalid", "true")
    longest = "é" * ((64 * 1024 - len('{"action":"chat_message","message":""}')) // 2)
    await bob.enter("Message", longest + "éé")
    await expect(bob.refusal("Message")).to_contain_text("too long")
    await expect(bob.field("Message")).to_have_value(longest + "éé")
    await bob.enter("Message", longest)
    assert await ann.receive() == said("Bob", longest)
    await bob.field("Nickname").press_sequentially("x")
    await expect(bob.refusal("Nickname")).to_have_text("")
    # A name that was refused does not stay in its field when a link leads to another one.
    await bob.page.evaluate("location.hash = '#physics'")
    await bob.is_connected("physics", "Bob")
    await expect(bob.field("Room")).to_have_value("physics")


async def test_keys_and_clicks(bob: ChatPage, ann: Member) -> None:
    message, keyboard = bob.field("Message"), bob.page.keyboard
    # Typing anywhere reaches the message field; Tab completes a name, or else moves the focus.
    await bob.button("Join").focus()
    await keyboard.type("hello @a")
    await keyboard.press("Tab")
    await expect(message).to_have_value("hello @Ann ")
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
    # In Safari, a composition ends before the Enter that confirms it.
    await message.evaluate(
        "e => { e.dispatchEvent(new CompositionEvent('compositionstart'));"
        "e.dispatchEvent(new CompositionEvent('compositionend', { data: '漢字' }));"
        "const init = { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true };"
        "e.dispatchEvent(new KeyboardEvent('keydown', init)); }"
    )
    await bob.enter("Message", "next")
    assert await ann.receive() == said("Bob", "next")
    await ann.say(*map(str, range(100)))
    await expect(bob.texts().last).to_have_text("99")
    await expect(bob.entries().last).to_be_in_viewport()
    await keyboard.press("PageUp")
    await expect(bob.entries().last).not_to_be_in_viewport()
    await keyboard.press("PageDown")
    await expect(bob.entries().last).to_be_in_viewport()


async def test_room_in_the_address(server: Server, join: Join, open_page: OpenPage) -> None:
    await join(server.url, "Zoë?&/%", "full")
    zoe = await open_page(server.url, "math")
    await zoe.is_connected("math", RANDOM)
    await zoe.field("Room").fill(strange := "a/b %41 #ü")
    await zoe.field("Nickname").fill("Zoë?&/%")
    # Faster than any response.
    await zoe.page.evaluate("for (const form of document.forms) form.requestSubmit()")
    await zoe.is_connected(strange, "Zoë?&/%")
    await zoe.page.go_back()
    await zoe.is_connected("math", "Zoë?&/%")
    links = {"#math/Bob": "math/Bob", "#%E0%A4%A": "%E0%A4%A", "": "default"}
    for address, room in links.items():
        await zoe.page.evaluate("hash => location.hash = hash", address)
        await zoe.is_connected(room, "Zoë?&/%")
    # A link that leads nowhere is put right.
    for room, sentence in {"full": "already in use", "r" * 65536: "too long"}.items():
        await zoe.page.evaluate("room => location.hash = room", room)
        await expect(zoe.refusal("Room")).to_contain_text(sentence)
        await zoe.is_connected("default", "Zoë?&/%")


async def test_what_is_kept(server: Server, open_page: OpenPage) -> None:
    zoe = await open_page(server.url, "math")
    await zoe.is_connected("math", RANDOM)
    name = await zoe.field("Nickname").input_value()
    await zoe.page.reload()
    await zoe.is_connected("math", name)
    await zoe.enter("Nickname", "Zoe")
    await zoe.field("Message").fill("half a\nsentence")
    await zoe.is_connected("math", "Zoe")
    await zoe.page.reload()
    await expect(zoe.field("Message")).to_have_value("half a\nsentence")
    # A new tab knows the nickname, but the name of each tab is its own.
    tab = await open_page(server.url, "chess", context=zoe.page.context)
    await tab.is_connected("chess", "Zoe")
    await tab.enter("Nickname", "Zora")
    await tab.is_connected("chess", "Zora")
    await zoe.page.reload()
    await zoe.is_connected("math", "Zoe")


async def test_hidden_tab(server: Server, join: Join, open_page: OpenPage) -> None:
    stub = (
        "window.Notification = class { static permission = 'default';"
        "static async requestPermission() { Notification.permission = 'granted'; }"
        "constructor(title, options) { (window.notes ??= []).push(title + ': ' + options.body); } }"
    )
    bob = await open_page(server.url, "math", "Bob", lambda chat: chat.page.add_init_script(stub))
    ann = await join(server.url, "Ann", "math")
    await bob.button("Notify me").click()
    await expect(bob.button("Notify me")).to_be_hidden()
    await ann.say("Bob, you see this")
    await expect(bob.texts().last).to_have_text("Bob, you see this")
    await bob.hide()
    for text, counts in {"unseen": "1", "Hello, Bob!": "@1, 2", "more": "@1, 3"}.items():
        await ann.say(text)
        await expect(bob.page).to_have_title(f"({counts}) math - aiohttp chat")
    await expect(bob.entries(".line").last.locator(".text")).to_have_text("New since you left")
    await expect(bob.entries(".line").last.locator("+ *")).to_contain_text("unseen")
    assert await bob.page.evaluate("notes") == ["Ann in math: Hello, Bob!"]
    await bob.hide(False)
    await expect(bob.page).to_have_title("math - aiohttp chat")
    await bob.page.clock.set_system_time("2030-01-02 12:00:00")
    await ann.say("later")
    await expect(bob.texts(".line").last).to_have_text(re.compile("^Wednesday,? 2 January 2030$"))
    time = bob.entries().last.locator("time")
    await expect(time).to_have_attribute("title", re.compile(r"2 January 2030, 12[:.]00"))
