-- wrk's summary as one line of JSON, the last that it prints.
done = function(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format('{"requests":%d,"seconds":%.6f,"broken":%d,"status":%d,"timeout":%d}\n',
      summary.requests, summary.duration / 1e6, errors.connect + errors.read + errors.write, errors.status,
      errors.timeout))
end
