// A WebSocket over HTTP/2 (RFC 8441), with Node's http2 and frames by hand, against server.py: `ok NAME` for each case
// that holds.
//
//     over_http2.js URL
const assert = require('node:assert/strict');
const { randomBytes } = require('node:crypto');
const http2 = require('node:http2');

const CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8;
const CLOSES = [[1000, ''], [1000, 'done'], [1001, 'going away'], [4000, 'of our own'], [4999, 'last, caf\u00e9']];
const session = http2.connect(process.argv[2]);
session.setTimeout(20_000, () => session.destroy(new Error('nothing came for 20 s')));

// A frame of a client, masked; the last of its message, if it is not said that more come.
function frame(opcode, payload, last = true) {
  const length = payload.length;
  const head = length < 126 ? [length | 0x80] : [127 | 0x80, 0, 0, 0, 0, ...[24, 16, 8, 0].map((n) => (length >> n) & 255)];
  const mask = randomBytes(4);
  const masked = Buffer.from(payload.map((byte, at) => byte ^ mask[at % 4]));
  return Buffer.concat([Buffer.from([(last ? 0x80 : 0) | opcode, ...head]), mask, masked]);
}

// The payload of a closing frame.
const closing = ([code, reason]) => Buffer.concat([Buffer.from([code >> 8, code & 255]), Buffer.from(reason)]);

// A socket: `next` gives the next frame, as `{ last, opcode, payload }`.
async function open(path) {
  const stream = session.request(
    { ':method': 'CONNECT', ':protocol': 'websocket', ':path': path, 'sec-websocket-version': 13, 'sec-websocket-protocol': 'test.v1' },
    { endStream: false },
  );
  const head = await new Promise((resolve, reject) => stream.on('response', resolve).on('error', reject));
  const chunks = stream[Symbol.asyncIterator]();
  let rest = Buffer.alloc(0);
  const take = async (count) => {
    const parts = [rest];
    for (let have = rest.length; have < count; ) {
      const { value, done } = await chunks.next();
      assert.ok(!done, 'the stream has ended');
      parts.push(value);
      have += value.length;
    }
    const all = Buffer.concat(parts);
    rest = all.subarray(count);
    return all.subarray(0, count);
  };
  const next = async () => {
    const [first, second] = await take(2);
    const length = second === 127 ? Number((await take(8)).readBigUInt64BE()) : second === 126 ? (await take(2)).readUInt16BE() : second;
    return { last: first >= 0x80, opcode: first & 15, payload: await take(length) };
  };
  return { head, stream, next };
}

const cases = {
  async it_is_agreed() {
    const { head, stream } = await open('/');
    assert.equal(head[':status'], 200);
    assert.equal(head['sec-websocket-protocol'], 'test.v1');
    assert.equal(head['sec-websocket-accept'], undefined);
    stream.close();
  },
  async two_megabytes_come_back() {
    const { stream, next } = await open('/');
    const text = Buffer.alloc(1_000_000, 'abcdefg');
    for (const _ of [1, 2]) {
      stream.write(frame(TEXT, text));
      const { opcode, payload } = await next();
      assert.ok(opcode === TEXT && payload.equals(text));
    }
    stream.close();
  },
  async sixteen_megabytes() {
    const { stream, next } = await open('/');
    const message = randomBytes(16 << 20);
    stream.write(frame(BINARY, message));
    // The library sends a message of any length as one frame.
    const { last, opcode, payload } = await next();
    assert.ok(last && opcode === BINARY && payload.equals(message), `${payload.length} bytes`);
    stream.close();
  },
  async fragments_up_and_down() {
    const { stream, next } = await open('/');
    const parts = ['first ', 'second ', 'third'];
    stream.write(frame(TEXT, Buffer.from('parts')));
    parts.forEach((part, at) => stream.write(frame(at === 0 ? TEXT : CONTINUATION, Buffer.from(part), at === 2)));
    assert.deepEqual(JSON.parse((await next()).payload), parts);
    stream.write(frame(TEXT, Buffer.from('fragments')));
    const received = [];
    for (let last = false; !last; ) {
      const part = await next();
      assert.equal(part.opcode, received.length === 0 ? TEXT : CONTINUATION);
      received.push(String(part.payload));
      last = part.last;
    }
    assert.deepEqual(received.filter((part) => part !== ''), ['one ', 'two ', 'three']);
    stream.close();
  },
  async close_codes_from_the_client() {
    for (const close of CLOSES) {
      const { stream, next } = await open('/');
      stream.write(frame(CLOSE, closing(close)));
      const { opcode, payload } = await next();
      assert.ok(opcode === CLOSE && payload.equals(closing(close)), `${close}: ${payload}`);
      stream.end();
      for await (const chunk of stream) assert.equal(chunk.length, 0);
    }
  },
  async close_codes_from_the_server() {
    for (const close of CLOSES) {
      const { stream, next } = await open('/');
      stream.write(frame(TEXT, Buffer.from(`close ${close.join(' ')}`)));
      const { opcode, payload } = await next();
      assert.ok(opcode === CLOSE && payload.equals(closing(close)), `${close}: ${payload}`);
      stream.end(frame(CLOSE, payload));
      for await (const chunk of stream) assert.equal(chunk.length, 0);
    }
  },
  async it_is_closed_in_order() {
    const { stream, next } = await open('/');
    stream.write(frame(CLOSE, Buffer.from([3, 232])));
    const { opcode, payload } = await next();
    assert.ok(opcode === CLOSE && payload.readUInt16BE() === 1000);
    stream.end();
    for await (const chunk of stream) assert.equal(chunk.length, 0);
  },
  async twenty_share_the_connection() {
    const all = await Promise.all(Array.from({ length: 20 }, () => open('/')));
    await Promise.all(all.map(async ({ stream, next }, number) => {
      stream.write(frame(TEXT, Buffer.from(`number ${number}`)));
      assert.equal((await next()).payload.toString(), `number ${number}`);
      stream.close();
    }));
  },
};

(async () => {
  await new Promise((resolve) => session.once('remoteSettings', resolve));
  assert.ok(session.remoteSettings.enableConnectProtocol, 'it is offered');
  for (const [name, holds] of Object.entries(cases)) {
    await holds();
    console.log(`ok ${name}`);
  }
  session.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
