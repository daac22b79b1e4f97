"""The books' operations, each one script on Redis' clock.

A replica's adapters are fields of a hash: ``R||since`` is ready, ``L|owner|deadline`` being loaded and
``E|owner|deadline`` being evicted, in milliseconds. What is ready or being loaded takes a slot. What is being
evicted takes none, for what replaces it has its slot already; after its deadline whoever loads next unloads
it first, so that the replica never holds more than its slots. Only what is surely unloaded is removed.
"""

from __future__ import annotations

_START = """
local states, used, leases, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local owner = ARGV[1]

local function state_of(name)
  local value = redis.call('HGET', states, name)
  if not value then return nil end
  local kind, who, at = string.match(value, '^(%a)|([^|]*)|(%d+)$')
  return {kind = kind, owner = who, at = tonumber(at)}
end

local function all_states()
  local found, flat = {}, redis.call('HGETALL', states)
  for i = 1, #flat, 2 do found[flat[i]] = state_of(flat[i]) end
  return found
end

local function set(name, kind, who, at)
  redis.call('HSET', states, name, kind .. '|' .. who .. '|' .. string.format('%.0f', at))
end

local function remove(name)
  redis.call('HDEL', states, name)
  redis.call('ZREM', used, name)
end

local function lease(name, milliseconds)
  redis.call('ZADD', leases, now + milliseconds, name .. '|' .. owner)
  redis.call('ZADD', used, now, name)
end

local function keep()
  for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], 86400000) end
end
"""

ACQUIRE = (
    _START
    + """
local name, lease_ms, hold_ms = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local slots = tonumber(ARGV[5])
redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
local found = all_states()
local mine = found[name]
if mine and mine.kind == 'R' then
  lease(name, lease_ms)
  keep()
  return {'ready', now}
end
if mine and mine.at > now then
  if mine.kind == 'L' then lease(name, lease_ms) end
  return {'wait', now}
end

local in_use = {}
for _, member in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  in_use[string.match(member, '^(.*)|[^|]*$')] = true
end
local taken, victims, choices = 0, {}, {}
for other, state in pairs(found) do
  if other ~= name then
    local is_over = state.kind ~= 'R' and state.at <= now
    if state.kind == 'E' then
      if is_over then table.insert(victims, other) end
    else
      taken = taken + 1
      if is_over then
        table.insert(choices, {name = other, last = -1})
      elseif state.kind == 'R' and not in_use[other] then
        table.insert(choices, {name = other, last = tonumber(redis.call('ZSCORE', used, other) or 0)})
      end
    end
  end
end
table.sort(choices, function(a, b)
  if a.last ~= b.last then return a.last < b.last end
  return a.name < b.name
end)
local needed = taken + 1 - slots
if needed > #choices then
  redis.call('ZREM', leases, name .. '|' .. owner)
  return {'full', now}
end
for i = 1, needed do table.insert(victims, choices[i].name) end
for _, victim in ipairs(victims) do set(victim, 'E', owner, now + hold_ms) end
set(name, 'L', owner, now + hold_ms)
lease(name, lease_ms)
keep()
return {'load', now, unpack(victims)}
"""
)

LOADED = (
    _START
    + """
local state = state_of(ARGV[2])
if not state or state.kind ~= 'L' or state.owner ~= owner then return 0 end
set(ARGV[2], 'R', '', now)
lease(ARGV[2], tonumber(ARGV[3]))
return now
"""
)

FAILED = (
    _START
    + """
local name, is_gone = ARGV[2], ARGV[3] == '1'
redis.call('ZREM', leases, name .. '|' .. owner)
local state = state_of(name)
if state and state.kind == 'L' and state.owner == owner then
  if is_gone then remove(name) else set(name, 'E', owner, 0) end
end
for i = 4, #ARGV do
  local victim = state_of(ARGV[i])
  if victim and victim.kind == 'E' and victim.owner == owner then set(ARGV[i], 'E', owner, 0) end
end
return 1
"""
)

EVICTED = (
    _START
    + """
local state = state_of(ARGV[2])
if state and state.kind == 'E' and state.owner == owner then
  remove(ARGV[2])
  redis.call('ZREMRANGEBYSCORE', gone, '-inf', now - 60000)
  redis.call('ZADD', gone, now, ARGV[2])
  keep()
end
return 1
"""
)

FORGET = (
    _START
    + """
local state = state_of(ARGV[2])
redis.call('ZREM', leases, ARGV[2] .. '|' .. owner)
if state and state.kind == 'R' and state.at <= tonumber(ARGV[3]) then remove(ARGV[2]) end
return 1
"""
)

RELEASE = (
    _START
    + """
redis.call('ZREM', leases, ARGV[2] .. '|' .. owner)
if redis.call('HEXISTS', states, ARGV[2]) == 1 then redis.call('ZADD', used, now, ARGV[2]) end
return 1
"""
)

RENEW = (
    _START
    + """
-- what was released meanwhile, by a call that overtook this one, stays released
for i = 3, #ARGV do
  if redis.call('ZSCORE', leases, ARGV[i] .. '|' .. owner) then lease(ARGV[i], tonumber(ARGV[2])) end
end
return 1
"""
)

RECONCILE = (
    _START
    + """
local hold_ms, since, slots = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local listed = {}
for i = 5, #ARGV do listed[ARGV[i]] = true end
local ready, taken = {}, 0
for name, state in pairs(all_states()) do
  local is_old = state.at < since and state.at <= now
  if not listed[name] and is_old then
    remove(name)
  elseif state.kind ~= 'E' then
    taken = taken + 1
    if state.kind == 'R' then table.insert(ready, name) end
  end
end
local adopt, unload = {}, {}
for i = 5, #ARGV do
  local name = ARGV[i]
  local left = tonumber(redis.call('ZSCORE', gone, name) or 0)
  if redis.call('HEXISTS', states, name) == 0 and left < since then
    if taken < slots then
      taken = taken + 1
      set(name, 'L', owner, now + hold_ms)
      redis.call('ZADD', used, now, name)
      table.insert(adopt, name)
    else
      set(name, 'E', owner, now + hold_ms)
      table.insert(unload, name)
    end
  end
end
keep()
return {ready, adopt, unload}
"""
)
