// A shadow of an app: says of each request that has come whole what it was, one line each, and answers an error.
//
//     node shadow.js PORT
const crypto = require('crypto');
const http = require('http');

http.createServer((request, response) => {
  const hash = crypto.createHash('sha256');
  request.on('data', (data) => hash.update(data));
  request.on('end', () => {
    const mark = request.headers['x-countersign-mirrored'] ? 'marked' : 'plain';
    process.stdout.write(`had ${request.method} ${request.url} ${hash.digest('base64')} ${mark}\n`);
    response.writeHead(500);
    response.end('nobody hears this');
  });
  request.on('error', () => {});
}).listen(Number(process.argv[2]), '127.0.0.1');
