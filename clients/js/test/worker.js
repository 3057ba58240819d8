/** The client in a worker of a browser: it tells the page all that it hears. */

import { connect } from "../routecast.js";

self.onmessage = ({ data: { url, options, view } }) => {
  const client = connect(url, options);
  client.onState((state) => postMessage({ state }));
  client.subscribe(view, (metrics, frame) => postMessage({ metrics, frame }));
};
