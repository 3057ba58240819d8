/** The form for a token or an API key, the link to an identity provider, and who is signed in. */

import { part } from "./rows.js";

/** @typedef {import("./session.js").Session} Session */

/**
 * Give what a person enters to the session.
 *
 * @param {Session} session
 * @param {() => void} onSignedIn
 */
export function prepareSignIn(session, onSignedIn) {
  const form = part(document, "#sign-in form");
  const field = /** @type {HTMLInputElement} */ (part(form, "input"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const entered = field.value;
    field.value = "";
    if (await session.signIn(entered)) onSignedIn();
  });
}

/**
 * @param {Session} session
 * @param {() => void} onSignedOut
 */
export function prepareSignOut(session, onSignedOut) {
  const button = part(document, "#sign-out");
  button.addEventListener("click", async () => {
    const done = await session.signOut();
    button.textContent = done ? "Sign out" : "Not signed out. Try again";
    if (done) onSignedOut();
  });
}

/** @param {Session} session */
export function renderSession({ person, hasProvider }) {
  part(document, "#person").hidden = person === null;
  part(document, "#sign-out").hidden = !person?.can_sign_out;
  part(document, "#subject").textContent = person?.subject ?? "";
  part(document, "#provider").hidden = !hasProvider;
}
