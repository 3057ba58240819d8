/** Command lines to copy: one sends a first decision, one is the setting that allows this page. */

import { part } from "./rows.js";

const DECISION = '{"strategy":"hybrid","provider":"gemini","confidence":0.87,"cost":0.0023}';

/**
 * @param {string} page the page's own address
 * @param {boolean} needsKey whether the server needs an API key; this page's own may not allow to write
 */
export function firstDecision(page, needsKey) {
  const key = needsKey ? '-H "Authorization: Bearer $ROUTECAST_API_KEY" ' : "";
  return `curl ${key}--json '${DECISION}' ${new URL("v1/decisions", page).href}`;
}

/**
 * The setting with which the server allows this page.
 *
 * @param {string} page the page's own address
 */
export function allowPage(page) {
  return `ROUTECAST_ALLOWED_ORIGINS=${new URL(page).origin}`;
}

/**
 * Fill in the command lines, and let their buttons copy them.
 *
 * @param {string} page the page's own address
 */
export function prepareCommands(page) {
  prepareCommand(part(document, "#welcome .command"), firstDecision(page, false));
  prepareCommand(part(document, "#forbidden .command"), allowPage(page));
}

/**
 * Add the API key to the command that sends a first decision.
 *
 * @param {string} page the page's own address
 */
export function addKeyToCommand(page) {
  part(document, "#first-decision").textContent = firstDecision(page, true);
}

/**
 * @param {HTMLElement} command
 * @param {string} text
 */
function prepareCommand(command, text) {
  const line = part(command, "code");
  const button = part(command, "button");
  line.textContent = text;
  button.addEventListener("click", async () => {
    button.textContent = (await copy(line)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2_000);
  });
}

/**
 * Browsers allow the clipboard only to secure pages. On others the line stays selected, so that the
 * keyboard's copy command takes it.
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
