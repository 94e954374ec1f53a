"""A chat server as one writes it first: the tutorial's my_server.py, finished."""

import random
from collections import defaultdict
from typing import Any

from aiohttp import web


async def ws_chat(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    rooms = request.app["websockets"]
    room, user = "default", f"User{random.randrange(1000, 1_000_000)}"
    await websocket.send_json({"action": "connecting", "room": room, "user": user})
    rooms[room][user] = websocket
    try:
        await broadcast(rooms[room], websocket, action="joined", room=room, user=user)
        async for message in websocket:
            body = message.json()
            response = {"action": body["action"], "success": True, "message": ""}
            match body:
                case {"action": "chat_message" as action, "message": text}:
                    await broadcast(rooms[room], websocket, action=action, message=text, user=user)
                    response["message"] = text
                case {"action": "join_room", "room": new} if user not in rooms[new]:
                    rooms[new][user] = rooms[room].pop(user)
                    await broadcast(rooms[room], websocket, action="left", room=room, user=user)
                    room = new
                    await broadcast(rooms[room], websocket, action="joined", room=room, user=user)
                case {"action": "set_nick", "nick": nick} if nick not in rooms[room]:
                    rooms[room][nick] = rooms[room].pop(user)
                    change = {"action": "nick_changed", "from_user": user, "to_user": nick}
                    await broadcast(rooms[room], websocket, room=room, **change)
                    user = nick
                case {"action": "user_list", "room": name}:
                    response = body | {"success": True, "users": list(rooms.get(name, ()))}
                case _:
                    response |= {"success": False, "message": "This can't be done."}
            await websocket.send_json(response)
    finally:
        del rooms[room][user]
        await broadcast(rooms[room], websocket, action="left", room=room, user=user)
    return websocket


async def broadcast(members: dict[str, Any], sender: object, **body: object) -> None:
    for member in [member for member in members.values() if member is not sender]:
        await member.send_json(body)


def init_app() -> web.Application:
    app = web.Application()
    app["websockets"] = defaultdict(dict)
    app.add_routes([web.get("/chat", ws_chat)])
    return app


if __name__ == "__main__":
    web.run_app(init_app())
