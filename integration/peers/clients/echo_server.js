// The server behind the pair in the client tests: plain HTTP/1.1, and it tells what reached it.
//
//     echo_server.js PORT
//
//   /echo            the body, as it comes
//   /seen/…          what the request was: method, target, headers in their order and spelling, trailers, socket
//   /missing         404
//   /trailers        a body in two chunks, and its SHA-256 as a trailer
//   /gzip            a body that is compressed already
//   /cookie          a response header of 8 KiB
//   /refused         413 to a request that asks before it sends its body
//   /digest          SHA-256 and length of the body that was sent
//   /bytes?count=N   N bytes; their digest afterwards at /sent
//   /events?count=N  server-sent events 50 ms apart, each with its time; /events/state tells how far the last came
const { createHash, randomBytes } = require('node:crypto');
const http = require('node:http');
const zlib = require('node:zlib');

const GZIPPED = zlib.gzipSync('compressed once\n'.repeat(64));
const BLOCK = randomBytes(1 << 20);
const EVENTS_APART = 50;

let sent = {};
let events = {};

const routes = {
  echo: (request, response) => {
    response.writeHead(200, framed(request));
    request.pipe(response);
  },
  seen: async (request, response) => {
    for await (const _ of request);
    json(response, {
      method: request.method,
      target: request.url,
      version: request.httpVersion,
      headers: request.rawHeaders,
      trailers: request.trailers,
      socket: request.socket.remotePort,
    });
  },
  missing: (_, response) => response.writeHead(404, { 'content-type': 'text/plain' }).end('missing\n'),
  trailers: (_, response) => {
    response.writeHead(200, { trailer: 'x-sha256' });
    response.write('first ');
    response.write('second\n');
    response.addTrailers({ 'x-sha256': createHash('sha256').update('first second\n').digest('hex') });
    response.end();
  },
  gzip: (_, response) =>
    response.writeHead(200, { 'content-encoding': 'gzip', 'content-length': GZIPPED.length }).end(GZIPPED),
  cookie: (_, response) => response.writeHead(200, { 'set-cookie': [`big=${'c'.repeat(8192)}`, 'small=1'] }).end(),
  digest: async (request, response) => {
    const hash = createHash('sha256');
    let bytes = 0;
    for await (const chunk of request) {
      hash.update(chunk);
      bytes += chunk.length;
    }
    json(response, { bytes, sha256: hash.digest('hex') });
  },
  bytes: async (request, response, query) => {
    const count = Number(query.get('count'));
    const hash = createHash('sha256');
    response.writeHead(200, { 'content-length': count });
    for (let left = count; left > 0; ) {
      // A number in each block, so that no two are alike.
      const block = Buffer.from(BLOCK.subarray(0, Math.min(left, BLOCK.length)));
      block.writeDoubleBE(left, 0);
      left -= block.length;
      hash.update(block);
      if (!response.write(block)) await new Promise((resolve) => response.once('drain', resolve));
    }
    sent = { bytes: count, sha256: hash.digest('hex') };
    response.end();
  },
  sent: (_, response) => json(response, sent),
  events: (request, response, query) => {
    if (request.url === '/events/state') return json(response, events);
    const count = Number(query.get('count'));
    const state = (events = { sent: 0, last: null, aborted: null });
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    const timer = setInterval(() => {
      state.last = Date.now();
      response.write(`id: ${state.sent}\ndata: ${state.last}\n\n`);
      state.sent += 1;
      if (state.sent === count) {
        clearInterval(timer);
        response.end();
      }
    }, EVENTS_APART);
    response.on('close', () => {
      clearInterval(timer);
      if (!response.writableFinished) state.aborted = Date.now();
    });
  },
};

// The length of an echo is known if that of the request is.
function framed(request) {
  const length = request.headers['content-length'];
  return length === undefined ? {} : { 'content-length': length };
}

function json(response, value) {
  const text = JSON.stringify(value);
  response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }).end(text);
}

function answer(request, response) {
  const { pathname, searchParams } = new URL(request.url, 'http://localhost');
  const route = routes[pathname.split('/')[1]];
  if (route === undefined) return response.writeHead(404).end();
  return route(request, response, searchParams);
}

const server = http.createServer({ maxHeaderSize: 64 << 10 }, answer);
server.on('checkContinue', (request, response) => {
  if (request.url === '/refused') return response.writeHead(413, { connection: 'close' }).end('too large\n');
  response.writeContinue();
  answer(request, response);
});
server.requestTimeout = 0;
server.listen(Number(process.argv[2]), '127.0.0.1');
