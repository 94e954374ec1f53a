"""What the page does when the server or the network is gone, and when a frame makes no sense."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable
from typing import Any

import pytest

from server import PAGE_HEADERS, STATIC
from tests.helpers import Join, Server, StartServer, left, said
from tests.page.helpers import RANDOM, ChatPage, OpenPage

with contextlib.suppress(ImportError):  # then the tests are skipped
    from playwright.async_api import Route, expect

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.needs("browser")]
DISCONNECTED = re.compile("^Disconnected")


async def test_socket_next_to_the_page(open_page: OpenPage) -> None:
    """Below a path and behind TLS, as with a reverse proxy."""

    def serve(route: Route) -> Awaitable[None]:
        name = route.request.url.rpartition("/")[2] or "index.html"
        return route.fulfill(path=STATIC / name, headers=PAGE_HEADERS)

    url = "https://chat.test/some/where"
    chat = await open_page(url, "math", prepare=lambda chat: chat.page.route("**/*", serve))
    async with chat.page.expect_websocket() as websocket:
        await chat.page.reload()
    assert (await websocket.value).url == "wss://chat.test/some/where/chat"


async def test_restart(start_server: StartServer, join: Join, open_page: OpenPage) -> None:
    server = start_server()
    bob = await open_page(server.url, "math", "Bob")
    tries: list[Any] = []
    bob.page.on("websocket", lambda websocket: tries.append(websocket))
    await bob.stop_clock()
    server.process.kill()  # without a close frame
    server.process.wait()
    await expect(bob.status).to_have_text(DISCONNECTED)
    for label, text in {"Message": "half a sentence", "Nickname": "Bobby"}.items():
        await bob.enter(label, text)
        await expect(bob.refusal(label)).to_contain_text("not sent")
    # The pauses are 1, 2, 4, 8, 16 and 30 seconds, or up to a quarter less.
    for _ in range(130):
        await bob.page.clock.run_for(500)
    assert len(tries) == 6
    # In the middle of a pause, it reconnects when the network is back.
    start_server(port=server.port)
    await bob.page.evaluate("dispatchEvent(new Event('online'))")
    await bob.is_connected("math", "Bob")
    await bob.field("Nickname").press("Enter")
    await bob.is_connected("math", "Bobby")
    ann = await join(server.url, "Ann", "math")
    await bob.field("Message").press("Enter")
    assert await ann.receive() == said("Bobby", "half a sentence")
    # And when the Back button leads to it.
    event = "(name) => dispatchEvent(new PageTransitionEvent(name, { persisted: true }))"
    await bob.page.evaluate(event, "pagehide")
    assert await ann.receive() == left("math", "Bobby", shame=False)
    await bob.page.evaluate(event, "pageshow")
    await bob.is_connected("math", "Bobby")


async def test_network_that_is_gone(server: Server, open_page: OpenPage) -> None:
    """Nothing arrives any more, and nothing says so."""
    bob = await open_page(server.url, "math", "Bob", ChatPage.pass_through)
    await bob.stop_clock()

    def freeze() -> list[Any]:
        sent: list[Any] = []
        bob.sockets[-1][0].on_message(lambda request: sent.append(request))
        bob.sockets[-1][0].on_close(lambda code, reason: None)  # the server does not learn of it
        return sent

    # Somebody writes: what the server has not confirmed is in the field again.
    freeze()
    for text in ("one", "two"):
        await bob.enter("Message", text)
    await bob.field("Message").fill("three")
    await bob.page.clock.run_for(10_000)
    await expect(bob.field("Message")).to_have_value("one\ntwo\nthree")
    await expect(bob.refusal("Message")).to_contain_text("may have arrived")
    await bob.page.clock.run_for(1_000)
    await bob.is_connected("math", RANDOM)
    # The old connection still has the name; once the server has noticed, the page takes it.
    await expect(bob.refusal("Nickname")).to_have_text("Nickname is already in use")
    await expect(bob.field("Nickname")).to_have_value("Bob")
    await bob.sockets[0][1].close()
    await bob.is_connected("math", "Bob")
    await expect(bob.refusal("Nickname")).to_have_text("")
    # Somebody only reads: the page asks after half a minute.
    sent = freeze()
    for passed, requests in ((29_000, 0), (1_000, 1)):
        await bob.page.clock.run_for(passed)
        assert len(sent) == requests
        await expect(bob.status).to_have_text("Connected")
    await bob.page.clock.run_for(10_000)
    await expect(bob.status).to_have_text(DISCONNECTED)
    await bob.page.clock.run_for(20)
    gap = re.compile(r"^You were disconnected\. Messages after \d\d[:.]\d\d.* are missing\.$")
    await expect(bob.texts(".notice").filter(has_text="missing")).to_have_text([gap, gap])


async def test_odd_frames(server: Server, join: Join, open_page: OpenPage) -> None:
    ann = await join(server.url, "Ann", "math")
    bob = await open_page(server.url, "math", "Bob", ChatPage.pass_through)
    for action in ("whisper", "toString", None, 7):
        bob.receive(action=action, user="Eve", message="x")
    bob.receive(action="user_list", success=True, room="math", users=["Eve"])
    await ann.say("after it all")
    await bob.enter("Message", "still here")
    await expect(bob.texts()).to_have_text(["You are Bob in math", "after it all", "still here"])
    await expect(bob.users).to_have_text(["Ann", "Bob (you)"])
    # A message that is refused is not lost.
    refusal = {"action": "chat_message", "success": False, "message": "Not now."}
    bob.sockets[0][0].on_message(lambda request: bob.receive(**refusal))
    await bob.enter("Message", "next")
    await expect(bob.refusal("Message")).to_have_text("Not now.")
    await expect(bob.field("Message")).to_have_value("next")
