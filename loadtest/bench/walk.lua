-- Walks a list of ready-made HTTP requests: wrk … -- FILE. Each stands in the file as its length, a newline, and its bytes.
-- `wrk -t1` has one such state, so the list is walked once over all connections together, from its beginning.
local requests, position = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  while true do
    local length = file:read("*l")
    if length == nil then break end
    requests[#requests + 1] = file:read(tonumber(length))
  end
  file:close()
end

function request()
  position = position % #requests + 1
  return requests[position]
end

-- One line that a program can read: answers, seconds, p50, p95, p99 in ms, answers of 400 and above, time-outs, failed sockets.
function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format("RESULT %d %f %f %f %f %d %d %d\n", summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.timeout, errors.connect + errors.read + errors.write))
end
