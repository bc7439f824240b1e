// A gRPC client made of frames, to see what grpcio hides: `ok NAME` for each case that holds. The server is
// interop_server.py.
//
//     wire_client.js URL
const assert = require('node:assert/strict');
const http2 = require('node:http2');

const END_STREAM = http2.constants.NGHTTP2_FLAG_END_STREAM;
const EMPTY_MESSAGE = Buffer.alloc(5);

const session = http2.connect(process.argv[2]);
session.setTimeout(20_000, () => session.destroy(new Error('nothing came for 20 s')));

// A call with an empty message: the head of the answer, whether it is all of it, messages and trailers.
function call(method, headers = {}) {
  return new Promise((resolve, reject) => {
    const answer = { chunks: [], trailers: null };
    const head = { ':method': 'POST', ':path': method, 'content-type': 'application/grpc', te: 'trailers', ...headers };
    const stream = session.request(head);
    stream.on('response', (received, flags) => {
      answer.head = received;
      answer.alone = (flags & END_STREAM) !== 0;
    });
    stream.on('trailers', (trailers) => (answer.trailers = trailers));
    stream.on('data', (chunk) => answer.chunks.push(chunk));
    stream.on('error', reject);
    stream.on('end', () => resolve({ ...answer, body: Buffer.concat(answer.chunks) }));
    stream.end(EMPTY_MESSAGE);
  });
}

const cases = {
  async a_status_comes_in_trailers_after_a_message() {
    const { head, alone, body, trailers } = await call('/grpc.testing.TestService/EmptyCall');
    assert.deepEqual([head[':status'], head['grpc-status'], alone], [200, undefined, false]);
    assert.ok(body.equals(EMPTY_MESSAGE));
    assert.equal(trailers['grpc-status'], '0');
  },
  async an_error_without_a_message_is_one_frame_of_headers() {
    const { head, alone, body, trailers } = await call('/grpc.testing.TestService/Nothing');
    assert.deepEqual([head[':status'], head['grpc-status'], alone, trailers], [200, '12', true, null]);
    assert.equal(body.length, 0);
  },
  async the_server_has_no_more_time_than_the_client_gave() {
    const { head } = await call('/grpc.testing.TestService/EmptyCall', { 'grpc-timeout': '15S' });
    const left = Number(head['x-time-left-ms']);
    assert.ok(left > 5_000 && left <= 15_000, `${left} ms`);
  },
};

async function main() {
  for (const [name, run] of Object.entries(cases)) {
    await run();
    console.log(`ok ${name}`);
  }
  session.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
