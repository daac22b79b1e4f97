"""Two leaky buckets of a key, requests and tokens, filled and drained by Redis' own clock.

A hash holds how full each is at ``at`` (microseconds). A bucket of ``limit`` drains ``limit`` a minute, so
that a key may use a minute's worth at once and then goes on at its rate. Levels, not times, are kept: another
limit counts from the next request on.
"""

_LEVELS = """
local MINUTE = 60000000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limits = {tonumber(ARGV[1]), tonumber(ARGV[2])}
local known = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens')
-- a clock that was set back drains nothing
local elapsed = math.max(0, now - (tonumber(known[1]) or now))
local levels = {}
for i = 1, 2 do
  levels[i] = math.max(0, (tonumber(known[i + 1]) or 0) - elapsed * limits[i] / MINUTE)
end
local function keep()
  local longest = 1
  for i = 1, 2 do
    if limits[i] > 0 then longest = math.max(longest, levels[i] / limits[i] * 60) end
  end
  redis.call('HSET', KEYS[1], 'at', now, 'requests', levels[1], 'tokens', levels[2])
  redis.call('EXPIRE', KEYS[1], math.ceil(longest) + 1)
end
"""

TAKE = (
    _LEVELS
    + """
local wanted = {1, tonumber(ARGV[3])}
local waits = {0, 0}
for i = 1, 2 do
  if limits[i] > 0 then waits[i] = math.max(0, levels[i] + wanted[i] - limits[i]) / limits[i] * MINUTE end
end
local refused = waits[1] > 0 or waits[2] > 0
if not refused then
  for i = 1, 2 do
    if limits[i] > 0 then levels[i] = levels[i] + wanted[i] end
  end
  keep()
end
local answer = {math.ceil(waits[1]), math.ceil(waits[2])}
for i = 1, 2 do
  local full = limits[i] > 0 and levels[i] / limits[i] * MINUTE or 0
  answer[#answer + 1] = math.floor(limits[i] - levels[i])
  answer[#answer + 1] = math.ceil(full)
end
return answer
"""
)
"""ARGV: requests and tokens a minute, 0 for no limit; tokens. All or nothing is taken.

Returns microseconds to wait for requests and tokens, 0 where taken; then of each what is left, and the
microseconds until all of it is.
"""

CORRECT = (
    _LEVELS
    + """
for i = 1, 2 do levels[i] = math.max(0, levels[i] + ARGV[2 + i]) end
keep()
return 1
"""
)
"""ARGV: requests and tokens a minute; what to add to the levels, which may be negative."""
