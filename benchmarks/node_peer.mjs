// A server in Node.js for comparison: it sends one document every interval with the package `ws`.
// node node_peer.mjs PORT INTERVAL DOCUMENT
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const [port, interval, path] = process.argv.slice(2);
const document = readFileSync(path, "utf8");
const http = createServer((_, response) => response.writeHead(404).end());
const server = new WebSocketServer({ server: http, perMessageDeflate: false });

setInterval(() => {
  const now = new Date().toISOString().replace("Z", "000+00:00");
  const message = Buffer.from(`${document}"${now}"}`);
  for (const client of server.clients) client.send(message, { binary: false });
}, interval * 1000);

http.listen({ host: "127.0.0.1", port, backlog: 2048 });
