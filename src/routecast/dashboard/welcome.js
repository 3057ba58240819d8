/** The empty state: one line to paste that sends a first decision. */

import { part } from "./rows.js";

const DECISION = '{"strategy":"hybrid","provider":"gemini","confidence":0.87,"cost":0.0023}';

/**
 * @param {string} page the page's own address
 */
export function firstDecision(page) {
  return `curl --json '${DECISION}' ${new URL("v1/decisions", page).href}`;
}

/**
 * Fill in the line and make its button copy it.
 *
 * @param {string} page the page's own address
 */
export function prepareWelcome(page) {
  const line = part(document, "#first-decision");
  const button = part(document, "#copy");
  line.textContent = firstDecision(page);
  button.addEventListener("click", async () => {
    button.textContent = (await copy(line)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2_000);
  });
}

/**
 * Browsers give the clipboard to secure pages alone. Elsewhere the line is left selected, so that
 * the keyboard's copy takes it.
 *
 * @param {HTMLElement} line
 * @returns {Promise<boolean>} whether it is in the clipboard
 */
async function copy(line) {
  try {
    await navigator.clipboard.writeText(line.textContent ?? "");
    return true;
  } catch {
    getSelection()?.selectAllChildren(line);
    return false;
  }
}
