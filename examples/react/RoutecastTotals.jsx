/**
 * The client's own hook in React: only what is shown is asked for, and only changes come.
 *
 *     <RoutecastTotals url="http://127.0.0.1:8000" strategies={["hybrid"]} />
 */

import { useMetrics } from "../../clients/js/react.js"; // in a project of yours: "@routecast/client/react"

/** @param {{url: string, strategies?: string[]}} props */
export function RoutecastTotals({ url, strategies }) {
  const filter = strategies && { strategy: strategies };
  const { metrics, state, error } = useMetrics(url, { fields: ["total_decisions", "cost"], filter, window: "1h", interval: 1 });
  if (!metrics) return <p role="status">{error?.message ?? state.reason ?? "Connecting…"}</p>;

  const live = state.name === "connected" && !error;
  return (
    <section aria-label="The last hour">
      <p role="status">{live ? "Live" : `Not live: ${error?.message ?? state.reason ?? state.name}`}</p>
      <p>
        <strong>{metrics.total_decisions.toLocaleString("en")}</strong> decisions, {metrics.cost.priced > 0 ? `$${metrics.cost.total}` : "none priced"}
      </p>
    </section>
  );
}

export default RoutecastTotals;
