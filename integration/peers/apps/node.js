// An app of Node that answers its name to everything.
//
//     node node.js MILLISECONDS PORT
//
// A connection waits for its next request for so many milliseconds; Node's own default is 5000.
const http = require('node:http');

const [keepAlive, port] = process.argv.slice(2).map(Number);
const server = http.createServer((request, response) => {
  request.on('end', () => response.end('node'));
  request.resume();
});
server.keepAliveTimeout = keepAlive;
server.listen(port, '127.0.0.1');
