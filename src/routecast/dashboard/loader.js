/*
 * Loads the page again when one of its files cannot be loaded, as may happen while servers are
 * upgraded: a server has the files of its own version only. The page contains this script's text,
 * so that it is always there and always of the page's version. It has no imports for that reason.
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
   * Whether there is an answer with 200. The browser then has the file, if it may be cached.
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
   * Ask for each file until a server has it. An address stands for one content, so the browser keeps
   * the file, and the page finds it after the reload whichever server is asked. One file at a time:
   * where two servers are asked in turn, that takes two tries at most. Where no server has one of
   * the files, the others are of no use.
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
      // The page stays while there is no server, instead of giving way to the browser's error.
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

  // Such events are told to the element alone and do not bubble; but they can be captured.
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
