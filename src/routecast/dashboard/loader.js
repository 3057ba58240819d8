/*
 * Loads the page again if one of its files cannot be loaded. This happens while servers are upgraded:
 * a server has only the files of its own version. The page contains this script's text, so that it is
 * always there, in the page's version. For that reason it has no imports.
 */
(() => {
  const MAX_RELOADS = 3;

  /** The first pause before a reload; each further one is twice as long. */
  const PAUSE_MS = 1_000;

  /** How often to ask for one file before each reload. */
  const MAX_TRIES = 20;
  const TRY_PAUSE_MS = 50;

  const files = document.currentScript?.dataset.files?.split(" ") ?? [];

  /** How often this page was loaded again; the browser keeps it with the tab's history. */
  let reloads = Number(history.state?.reloads ?? 0);
  let failed = false;

  /** @param {number} ms */
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  /**
   * Whether the server answers 200. The browser then has the file in its cache, if it may be cached.
   *
   * @param {string} address
   */
  async function found(address) {
    try {
      const answer = await fetch(address);
      await answer.arrayBuffer();
      return answer.ok;
    } catch {
      return false;
    }
  }

  /**
   * Request each file until a server has it. An address stands for one content, so the browser keeps
   * the file, and the page finds it after the reload, whichever server answers. One file at a time:
   * if two servers answer in turn, that takes at most two attempts. If no server has one of the
   * files, the others are of no use.
   */
  async function fetchFiles() {
    for (const address of files) {
      let tries = 1;
      while (!(await found(address))) {
        if (tries++ === MAX_TRIES) return;
        await pause(TRY_PAUSE_MS);
      }
    }
  }

  /** @param {string} text */
  function say(text) {
    const state = document.querySelector("#state");
    if (state) state.textContent = text;
  }

  async function repair() {
    say("Loading again");
    while (reloads < MAX_RELOADS) {
      const wait = PAUSE_MS * 2 ** reloads;
      reloads += 1;
      history.replaceState({ reloads }, "");
      await Promise.all([pause(wait), fetchFiles()]);
      // While there is no server, the page stays, instead of the browser's error page.
      if (await found(location.href)) return location.reload();
    }
    giveUp();
  }

  function giveUp() {
    const template = document.querySelector("#unloaded");
    const main = document.querySelector("main");
    if (!(template instanceof HTMLTemplateElement) || !main) return;
    main.replaceChildren(template.content);
    main.querySelector("button")?.addEventListener("click", () => {
      history.replaceState(null, "");
      location.reload();
    });
    say("Not loaded");
  }

  /** @param {Event} event */
  function isOfFile({ target }) {
    return target instanceof HTMLScriptElement || (target instanceof HTMLLinkElement && target.rel === "stylesheet");
  }

  // Such events do not bubble, but they can be captured.
  addEventListener(
    "error",
    (event) => {
      if (failed || !isOfFile(event)) return;
      failed = true;
      if (document.readyState === "loading") addEventListener("DOMContentLoaded", repair);
      else repair();
    },
    true,
  );
  addEventListener("load", () => {
    if (!failed) history.replaceState(null, "");
  });
})();
