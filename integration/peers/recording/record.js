// A recorder on Node's http: `record.js PORT FILE` answers every request and writes what it saw of it.
//
// One line of JSON for each request that arrived whole, before the answer. With Node's lenient parser, which takes
// more of what can be read in two ways. Header names are compared as WSGI and CGI would, which cannot tell `_` from `-`.
"use strict";

const fs = require("node:fs");
const http = require("node:http");

const [port, file] = process.argv.slice(2);
const plain = (name) => name.toLowerCase().replaceAll("_", "-");

function record(request, response) {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const raw = request.rawHeaders;
    const caller = raw.filter((_, at) => at % 2 === 1 && plain(raw[at - 1]) === "x-forwarded-client-cert");
    const seen = {
      method: request.method,
      target: request.url,
      body: Buffer.concat(pieces).toString("latin1"),
      caller,
      headers: raw.flatMap((name, at) => (at % 2 === 0 ? [[name, raw[at + 1]]] : [])),
      trailers: Object.keys(request.trailers).map(plain),
    };
    fs.appendFileSync(file, JSON.stringify(seen) + "\n");
    const text = `${request.method} ${request.url}`;
    response.writeHead(200, { "x-seen": text, "content-length": Buffer.byteLength(text) });
    response.end(text);
  });
}

http.createServer({ insecureHTTPParser: true, maxHeaderSize: 131072 }, record).listen(port, "127.0.0.1", 128);
