#!lua
-- What can be done in the chat. A request is one run of this script, and nothing else happens in Redis meanwhile.
-- ARGV: the action, the process and the member who ask, and what else the action needs.
--
--   chat:processes         sorted set   process -> up to when (ms) it has read the log
--   chat:members:PROCESS   hash         member -> their place: room, user, and the user's name as utils.fold() makes it
--   chat:room:ROOM         hash         folded name -> name
--   chat:names             hash         folded name -> in how many rooms it is taken
--   chat:log               stream       what members are told, in this order

local action, process, member, value, folded = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Tell everyone in a room but the member whom it is about.
local function broadcast(room, member, body)
  redis.call('XADD', 'chat:log', '*', 'room', room, 'skip', member, 'body', cjson.encode(body))
end

-- Tell the member who asked, who is in this place from here on.
local function respond(place, body)
  redis.call('XADD', 'chat:log', '*', 'room', place.room, 'user', place.user, 'to', member, 'body', cjson.encode(body))
end

-- Bring a member from an old place, if any, to a new one, if any; return false if the name is taken there.
local function move(process, member, old, new)
  local members = 'chat:members:' .. process
  if new then
    if redis.call('HSETNX', 'chat:room:' .. new.room, new.folded, new.user) == 0 then return false end
    redis.call('HINCRBY', 'chat:names', new.folded, 1)
  end
  if old then
    redis.call('HDEL', 'chat:room:' .. old.room, old.folded)
    if redis.call('HINCRBY', 'chat:names', old.folded, -1) == 0 then redis.call('HDEL', 'chat:names', old.folded) end
    redis.call('HDEL', members, member)
  end
  if new then redis.call('HSET', members, member, cjson.encode(new)) end
  return true
end

local function leave(process, member, place, shame)
  move(process, member, place, nil)
  broadcast(place.room, member, {action = 'left', room = place.room, user = place.user, shame = shame})
end

-- Let all members of a process leave, and forget it.
local function bury(process, shame)
  local members = redis.call('HGETALL', 'chat:members:' .. process)
  for i = 1, #members, 2 do leave(process, members[i], cjson.decode(members[i + 1]), shame) end
  redis.call('ZREM', 'chat:processes', process)
end

local actions = {}

-- A process begins to read the log here. Its former self may have lost touch so shortly ago that nobody has buried it.
function actions.begin()
  bury(value, true)
  redis.call('ZADD', 'chat:processes', now, process)
  local newest = redis.call('XREVRANGE', 'chat:log', '+', '-', 'COUNT', 1)[1]
  return newest and newest[1] or '0-0'
end

-- A sign of life; the value is the id of the last entry that the process has read.
function actions.sign()
  -- Where nobody has spoken for long, that id is old. So if nothing is unread, the time counts.
  local unread = redis.call('XRANGE', 'chat:log', '(' .. value, '+', 'COUNT', 1)[1]
  local read = unread and value:match('%d+') or now
  redis.call('ZADD', 'chat:processes', 'GT', read, process)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', 'chat:processes', '-inf', now - 5000)) do bury(dead, true) end
  local slowest = redis.call('ZRANGE', 'chat:processes', 0, 0, 'WITHSCORES')[2]
  redis.call('XTRIM', 'chat:log', 'MINID', slowest or now)
end

function actions.stop()
  bury(process, false)
end

-- Return how many names are in use, if this one is; or else nothing.
function actions.enter()
  if redis.call('HEXISTS', 'chat:names', folded) == 1 then return redis.call('HLEN', 'chat:names') end
  local place = {room = 'default', user = value, folded = folded}
  move(process, member, nil, place)
  respond(place, {action = 'connecting', room = place.room, user = place.user})
  broadcast(place.room, member, {action = 'joined', room = place.room, user = place.user})
end

function actions.leave(place)
  leave(process, member, place, value == 'shame')
end

function actions.set_nick(old)
  local new = {room = old.room, user = value, folded = folded}
  if not move(process, member, old, new) then
    return respond(old, {action = action, success = false, message = 'Nickname is already in use'})
  end
  respond(new, {action = action, success = true, message = ''})
  broadcast(new.room, member, {action = 'nick_changed', room = new.room, from_user = old.user, to_user = new.user})
end

function actions.join_room(old)
  local new = {room = value, user = old.user, folded = old.folded}
  if not move(process, member, old, new) then
    return respond(old, {action = action, success = false, message = 'Name already in use in this room.'})
  end
  broadcast(old.room, member, {action = 'left', room = old.room, user = old.user, shame = false})
  respond(new, {action = action, success = true, message = ''})
  broadcast(new.room, member, {action = 'joined', room = new.room, user = new.user})
end

function actions.chat_message(place)
  respond(place, {action = action, success = true, message = value})
  broadcast(place.room, member, {action = action, message = value, user = place.user})
end

function actions.user_list(place)
  respond(place, {action = action, success = true, room = value, users = redis.call('HVALS', 'chat:room:' .. value)})
end

if action ~= 'begin' and not redis.call('ZSCORE', 'chat:processes', process) then
  return redis.error_reply('GONE Redis does not know this process any more')
end
local place = member and redis.call('HGET', 'chat:members:' .. process, member)
return actions[action](place and cjson.decode(place))
