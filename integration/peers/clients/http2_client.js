// Node's http2 against echo_server.js, by prior knowledge, all on one session: `ok NAME` for each case that holds.
//
//     http2_client.js URL [CASE...]      all cases, if none is named
const assert = require('node:assert/strict');
const { createHash, randomBytes } = require('node:crypto');
const http2 = require('node:http2');
const zlib = require('node:zlib');

const session = http2.connect(process.argv[2]);
session.setTimeout(20_000, () => session.destroy(new Error('nothing came for 20 s')));

// One request. `send` writes its body; without it there is none.
function call(path, headers = {}, send = null, options = {}) {
  return new Promise((resolve, reject) => {
    const answer = { chunks: [], trailers: {} };
    const stream = session.request({ ':path': path, ...headers }, { endStream: send === null, ...options });
    stream.on('response', (head) => (answer.head = head));
    stream.on('trailers', (trailers) => (answer.trailers = trailers));
    stream.on('data', (chunk) => answer.chunks.push(chunk));
    stream.on('error', reject);
    stream.on('end', () => resolve({ ...answer, status: answer.head[':status'], body: Buffer.concat(answer.chunks) }));
    if (send !== null) send(stream);
  });
}

const post = (path, body) => call(path, { ':method': 'POST', 'content-length': body.length }, (s) => s.end(body));
const seen = async (...arguments_) => JSON.parse((await call(...arguments_)).body);

const cases = {
  async get() {
    assert.equal((await seen('/seen/x')).method, 'GET');
  },
  async post() {
    const body = randomBytes(1_000_003);
    assert.ok((await post('/echo', body)).body.equals(body));
  },
  async head() {
    const { status, head, body } = await call('/gzip', { ':method': 'HEAD' });
    assert.ok(status === 200 && Number(head['content-length']) > 0 && body.length === 0);
  },
  async missing() {
    const { status, body } = await call('/missing');
    assert.deepEqual([status, String(body)], [404, 'missing\n']);
  },
  async many_on_one_connection() {
    const bodies = Array.from({ length: 500 }, (_, number) => Buffer.from(`number ${number}`));
    const answers = await Promise.all(bodies.map((body) => post('/echo', body)));
    assert.deepEqual(answers.map(({ body }) => String(body)), bodies.map(String));
  },
  async upload_without_length() {
    const [body, hash] = [randomBytes(1_000_003), createHash('sha256')];
    const send = (stream) => {
      for (let at = 0; at < body.length; at += 10_007) stream.write(body.subarray(at, at + 10_007));
      stream.end();
    };
    const { bytes, sha256 } = await seen('/digest', { ':method': 'POST' }, send);
    assert.deepEqual({ bytes, sha256 }, { bytes: body.length, sha256: hash.update(body).digest('hex') });
  },
  async large_header() {
    const cookie = `big=${'c'.repeat(8192)}`;
    assert.ok((await seen('/seen/x', { cookie })).headers.includes(cookie));
    assert.deepEqual((await call('/cookie')).head['set-cookie'], [cookie, 'small=1']);
  },
  async gzip_untouched() {
    const { head, body } = await call('/gzip');
    assert.equal(head['content-encoding'], 'gzip');
    assert.equal(String(zlib.gunzipSync(body)), 'compressed once\n'.repeat(64));
  },
  async target_untouched() {
    const target = '/seen/caf%C3%A9/%E2%98%83?a=%2F..&b=c+d&&e=%C3%A9';
    assert.equal((await seen(target)).target, target);
  },
  async trailers_of_a_response() {
    const { body, trailers } = await call('/trailers');
    assert.equal(trailers['x-sha256'], createHash('sha256').update(body).digest('hex'));
  },
  async trailers_of_a_request() {
    const send = (stream) => {
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-after': 'all of it' }));
      stream.end('body');
    };
    const announced = { ':method': 'POST', trailer: 'x-after' };
    const { trailers } = await seen('/seen/x', announced, send, { waitForTrailers: true });
    assert.deepEqual(trailers, { 'x-after': 'all of it' });
  },
  async cookies_are_one_header() {
    const { headers } = await seen('/seen/x', { cookie: ['a=1', 'b=2', 'c=3'] });
    const values = headers.filter((_, at) => headers[at - 1]?.toLowerCase() === 'cookie' && at % 2 === 1);
    assert.deepEqual(values, ['a=1; b=2; c=3']);
  },
  // A body may be whole before its end is told. The server has its length, and answers; the stream stays until then.
  async a_late_end_of_the_body_is_waited_for() {
    for (const body of ['body', '']) {
      const head = { ':path': '/echo', ':method': 'POST', 'content-length': body.length };
      const stream = session.request(head, { endStream: false });
      const ended = new Promise((resolve, reject) => stream.on('end', resolve).on('error', reject));
      let got = '';
      stream.setEncoding('utf8').on('data', (text) => (got += text));
      if (body !== '') stream.write(body);
      await ended;
      // Whatever was sent behind the answer is here before the pong is.
      await new Promise((resolve, reject) => session.ping((error) => (error ? reject(error) : resolve())));
      assert.deepEqual([got, stream.closed || stream.destroyed], [body, false]);
      await new Promise((resolve) => stream.on('close', resolve).end());
    }
  },
  // The other streams of the session go on.
  async reset_reaches_the_server() {
    await new Promise((resolve, reject) => {
      const stream = session.request({ ':path': '/events?count=100000' });
      stream.once('data', () => stream.close(http2.constants.NGHTTP2_CANCEL));
      stream.on('error', reject);
      stream.on('close', resolve);
    });
    for (;;) {
      const { aborted } = await seen('/events/state');
      if (aborted) return;
    }
  },
};

async function main() {
  const named = process.argv.slice(3);
  for (const name of named.length > 0 ? named : Object.keys(cases)) {
    await cases[name]();
    console.log(`ok ${name}`);
  }
  session.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
