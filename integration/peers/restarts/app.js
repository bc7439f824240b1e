// An app that is restarted: on SIGTERM it takes nothing new, finishes what is under way, tells its tunnels, and ends.
//
//     node app.js PORT
const http = require('http');

const tunnels = new Set();
const server = http.createServer((request, response) => {
  if (request.url === '/events') {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    let left = 20;
    const clock = setInterval(() => {
      response.write(`data: ${left}\n\n`);
      if (--left === 0) {
        clearInterval(clock);
        response.end('data: last\n\n');
      }
    }, 50);
    return;
  }
  let bytes = 0;
  request.on('data', (data) => { bytes += data.length; });
  request.on('end', () => response.end(`${request.method} ${bytes}`));
});

// Each line comes back.
server.on('upgrade', (request, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: lines\r\n\r\n');
  socket.on('data', (data) => socket.write(data));
  socket.on('error', () => {});
  socket.on('close', () => tunnels.delete(socket));
  tunnels.add(socket);
});

process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
  for (const socket of tunnels) socket.end('bye\n');
});

server.listen(Number(process.argv[2]), '127.0.0.1');
