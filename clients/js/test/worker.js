/** The client in a browser's worker, which posts states and documents to the page. */

import { connect } from "../routecast.js";

self.onmessage = ({ data: { url, options, view } }) => {
  const client = connect(url, options);
  client.onState((state) => postMessage({ state }));
  client.subscribe(view, (metrics, frame) => postMessage({ metrics, frame }));
};
