// An app that is slow, and that knows how many requests it ever had at once.
//
//     slow_server.js MILLISECONDS PORT
//
//   /stream   a response in ten pieces, over that time
//   /most     how many there were at once, and how many in all; itself not counted
//   /…        an answer after that time
const http = require('node:http');

const [time, port] = process.argv.slice(2).map(Number);
let now = 0;
let most = 0;
let all = 0;

const sleep = (millis) => new Promise((resolve) => setTimeout(resolve, millis));

http
  .createServer(async (request, response) => {
    if (request.url === '/most') {
      response.end(JSON.stringify({ now, most, all }));
      return;
    }
    now += 1;
    all += 1;
    most = Math.max(most, now);
    response.once('close', () => {
      now -= 1;
    });
    if (request.url === '/stream') {
      for (let piece = 0; piece < 10; piece += 1) {
        response.write(`piece ${piece}\n`);
        await sleep(time / 10);
      }
    } else {
      await sleep(time);
    }
    response.end('slow\n');
  })
  .listen(port, '127.0.0.1');
