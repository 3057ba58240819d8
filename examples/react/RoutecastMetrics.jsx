/**
 * Routecast metrics in React: a hook that keeps the newest document, and a component that shows it.
 *
 *     <RoutecastMetrics url="http://127.0.0.1:8000?interval=1" />
 */

import { useEffect, useState } from "react";

import { RoutecastStream } from "../javascript/metrics-client.mjs";

/**
 * Follow a stream as long as the component is mounted. Reconnects by itself; ends on unmount.
 *
 * @param {string} url the server's, with what is asked for in its query
 * @returns {{metrics: any, error: string | null, state: string}} `metrics` is null before the first
 */
export function useRoutecastMetrics(url) {
  const [metrics, setMetrics] = useState(null);
  const [error, setError] = useState(null);
  const [state, setState] = useState("connecting");

  useEffect(() => {
    const stream = new RoutecastStream(url, {
      onMetrics(document) {
        setMetrics(document);
        setError(null);
      },
      onError: setError,
      onState: setState,
    });
    return () => stream.close();
  }, [url]);

  return { metrics, error, state };
}

/** @param {{url: string}} props */
export function RoutecastMetrics({ url }) {
  const { metrics, error, state } = useRoutecastMetrics(url);
  if (!metrics) return <p role="status">{state === "refused" ? "The server refused." : "Connecting…"}</p>;

  const fresh = state === "open" && !error;
  return (
    <section aria-label="Routing metrics">
      <p role="status">{fresh ? "Live" : `Not live: ${error ?? state}`}</p>
      <p>
        <strong>{metrics.total_decisions.toLocaleString("en")}</strong> decisions, average confidence{" "}
        {metrics.avg_confidence?.toFixed(3) ?? "unknown"}
      </p>
      <table>
        <thead>
          <tr>
            <th scope="col">Strategy</th>
            <th scope="col">Decisions</th>
            <th scope="col">Average cost</th>
          </tr>
        </thead>
        <tbody>
          {Object.entries(metrics.strategy_performance).map(([name, { count, avg_cost }]) => (
            <tr key={name}>
              <td>{name}</td>
              <td>{count.toLocaleString("en")}</td>
              <td>{avg_cost === null ? "unknown" : `$${avg_cost}`}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

export default RoutecastMetrics;
