#!lua flags=no-cluster
-- What members and processes can do. Redis runs this script as one step for each request.
-- ARGV: the action, the process, the member whose request it is (or ''), and up to two values.
--
--   chat:room:ROOM         hash         canonical name -> name
--   chat:names             hash         canonical name -> number of rooms where it is taken
--   chat:members:PROCESS   hash         member -> its place: room, name, canonical name
--   chat:processes         sorted set   process -> time (ms) up to which it has read the log
--   chat:log               stream       what members are sent, in this order

local action, process, member, value, canonical = unpack(ARGV)
local call = redis.call
local cost = 0  -- bytes that the request lets others be sent, at least 512 for each

local function result(success, message)
  return {action = action, success = success, message = message}
end

-- Add to the log: the member's place from here on, the response to the member, and the broadcast
-- to the others in the room. Either message may be nil.
local function log(place, response, broadcast)
  local users = broadcast and call('HLEN', 'chat:room:' .. place.room) or 0
  broadcast = broadcast and cjson.encode(broadcast) or ''
  cost = cost + users * math.max(#broadcast, 512)
  -- Lua writes an empty list as {}. In a name or a message, these quotes would be escaped.
  response = response and cjson.encode(response):gsub('"users":{}', '"users":[]') or ''
  call('XADD', 'chat:log', '*', 'sender', member, 'room', place.room, 'name', place.name,
    'response', response, 'broadcast', broadcast)
  return cost
end

-- Move the member; return false if its name is taken there. Either place may be nil.
local function move(old, new)
  if new and call('HSETNX', 'chat:room:' .. new.room, new.canonical, new.name) == 0 then
    return false
  end
  if old then
    call('HDEL', 'chat:members:' .. process, member)
    call('HDEL', 'chat:room:' .. old.room, old.canonical)
    if call('HINCRBY', 'chat:names', old.canonical, -1) == 0 then
      call('HDEL', 'chat:names', old.canonical)
    end
  end
  if new then
    call('HSET', 'chat:members:' .. process, member, cjson.encode(new))
    call('HINCRBY', 'chat:names', new.canonical, 1)
  end
  return true
end

local function leave(place, shame)
  move(place, nil)
  log(place, nil, {action = 'left', room = place.room, user = place.name, shame = shame})
end

local function remove(process, shame)
  local places = call('HVALS', 'chat:members:' .. process)
  for _, place in ipairs(places) do leave(cjson.decode(place), shame) end
  call('DEL', 'chat:members:' .. process)
  call('ZREM', 'chat:processes', process)
end

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if action == 'begin' then  -- the process reads the log from here on; the value is its former id
  remove(value, false)
  call('ZADD', 'chat:processes', now, process)
  local newest = call('XREVRANGE', 'chat:log', '+', '-', 'COUNT', 1)[1]
  return newest and newest[1] or '0-0'
elseif not call('ZSCORE', 'chat:processes', process) then
  return redis.error_reply('GONE Redis does not know this process any more')
end

local place = cjson.decode(call('HGET', 'chat:members:' .. process, member) or '{}')
if action == 'heartbeat' then
  -- The value is the last entry read. It may be old: if nothing is unread, the time counts.
  local unread = call('XRANGE', 'chat:log', '(' .. value, '+', 'COUNT', 1)[1]
  call('ZADD', 'chat:processes', 'GT', unread and value:match('%d+') or now, process)
  -- Remove the processes that are 5 seconds behind, and the entries that all others have read.
  local late = call('ZRANGEBYSCORE', 'chat:processes', '-inf', now - 5000)
  for _, other in ipairs(late) do remove(other, true) end
  call('XTRIM', 'chat:log', 'MINID', call('ZRANGE', 'chat:processes', 0, 0, 'WITHSCORES')[2] or now)
  return late
elseif action == 'end' then
  remove(process, false)
elseif action == 'enter' then  -- under a random name that is free in every room
  math.randomseed(time[2])  -- or each run would begin with the same number
  repeat value = 'User' .. math.random(1000, 999999)
  until call('HEXISTS', 'chat:names', value:lower()) == 0
  place = {room = 'default', name = value, canonical = value:lower()}
  move(nil, place)
  log(place, {action = 'connecting', room = place.room, user = value},
    {action = 'joined', room = place.room, user = value})
elseif action == 'leave' then
  leave(place, value ~= '')
elseif action == 'set_nick' then
  local new = {room = place.room, name = value, canonical = canonical}
  if not move(place, new) then return log(place, result(false, 'Nickname is already in use')) end
  log(new, result(true, ''),
    {action = 'nick_changed', room = new.room, from_user = place.name, to_user = value})
elseif action == 'join_room' then
  local new = {room = value, name = place.name, canonical = place.canonical}
  if not move(place, new) then
    return log(place, result(false, 'Name already in use in this room.'))
  end
  log(place, nil, {action = 'left', room = place.room, user = place.name, shame = false})
  log(new, result(true, ''), {action = 'joined', room = value, user = place.name})
elseif action == 'chat_message' then
  log(place, result(true, value), {action = action, message = value, user = place.name})
elseif action == 'user_list' then
  local users = call('HVALS', 'chat:room:' .. value)
  cost = #users * 512
  log(place, {action = action, success = true, room = value, users = users})
end
return cost
