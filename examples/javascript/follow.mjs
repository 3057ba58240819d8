/**
 * Follow a Routecast server with its client: the last hour first, then each change.
 *
 *     node follow.mjs http://127.0.0.1:8000
 */

import { connect } from "../../clients/js/routecast.js"; // in a project of yours: "@routecast/client"

let client;
try {
  client = connect(process.argv[2] ?? "http://127.0.0.1:8000");
} catch (error) {
  console.error(error.message); // no address, or no WebSocket
  process.exit(1);
}

client.onState((state) => {
  if (state.name === "reconnecting") console.error(`${state.reason}; trying again at ${new Date(state.at).toISOString()}`);
  if (state.name === "closed") console.error(state.reason);
});

for await (const { series } of client.history({ group_by: "strategy", fields: ["count"] })) {
  for (const { key, count = [] } of series) {
    console.log(`in the last hour: ${count.reduce((sum, each) => sum + each, 0)} by ${JSON.stringify(key)}`);
  }
}

for await (const { timestamp, total_decisions, cost } of client.subscribe({ fields: ["total_decisions", "cost"], interval: 1 })) {
  console.log(`${timestamp}  ${total_decisions} decisions, ${cost.priced > 0 ? `$${cost.total}` : "none priced"}`);
}
