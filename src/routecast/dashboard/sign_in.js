/** The form for a token or an API key. */

import { holdCredential } from "./credential.js";
import { part } from "./rows.js";

/**
 * Hold what a person enters.
 *
 * @param {() => void} onEntered
 */
export function prepareSignIn(onEntered) {
  const form = part(document, "#sign-in form");
  const field = /** @type {HTMLInputElement} */ (part(form, "input"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    holdCredential(field.value);
    field.value = "";
    onEntered();
  });
}
