// What the pages gain with scripts: a switch for light and dark, and parts that renew themselves when the controller
// says that something on them changed. Everything works without it.
"use strict";

(() => {
  const root = document.documentElement;
  const KEY = "theme";
  const GAP = 2000; // milliseconds between two fetches of a page
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function stored() {
    try { return localStorage.getItem(KEY); } catch { return null; }
  }
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

  const chosen = stored();
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  function theme() {
    const button = document.getElementById("theme");
    if (!button) return;
    const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    name();
    button.hidden = false;
    dark.addEventListener("change", name);
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem(KEY, root.dataset.theme); } catch { /* then only for this page */ }
      name();
    });
  }

  // Somebody is at work in it: it stays as it is.
  const inUse = (part) => part.contains(document.activeElement) || part.querySelector("details[open]") !== null;

  function live() {
    const line = document.getElementById("live");
    if (!line || !window.EventSource) return;
    const parts = () => [...document.querySelectorAll("[data-live]")];
    if (parts().length === 0) return;
    const changed = new Set();
    let all = false, busy = false, timer = 0;

    const concerns = (part) => all || part.dataset.live.split(" ").some((kind) => changed.has(kind));

    async function renew() {
      timer = 0;
      if (busy || document.hidden) return;
      const wanted = parts().filter(concerns).map((part) => part.id);
      changed.clear(); all = false;
      if (wanted.length === 0) return;
      busy = true;
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
        if (answer.type === "opaqueredirect") { location.reload(); return; }
        if (!answer.ok) return;
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const id of wanted) {
          const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
          if (!old || !next || inUse(old) || old.isEqualNode(next)) continue;
          const part = document.importNode(next, true);
          part.classList.add("fresh");
          old.replaceWith(part);
        }
        line.textContent = "Live. Last change seen at " + new Date().toLocaleTimeString() + ".";
      } catch { /* the next notice tries again */ } finally { busy = false; soon(); }
    }
    function soon() {
      if (!timer && (all || changed.size > 0)) timer = setTimeout(renew, GAP);
    }

    const events = new EventSource(line.dataset.events);
    events.onmessage = (event) => { event.data.split(" ").forEach((kind) => changed.add(kind)); soon(); };
    events.addEventListener("begin", (event) => {
      line.textContent = "Live.";
      if (event.data === "all") { all = true; soon(); }
    });
    events.onerror = () => { line.textContent = "Not live: the controller does not answer."; };
    document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
    addEventListener("pagehide", () => events.close());
  }

  document.addEventListener("DOMContentLoaded", () => {
    theme();
    live();
    // On a phone the navigation is wider than the screen.
    const here = document.querySelector(".top [aria-current]");
    if (here) { const bar = here.closest("ul"); bar.scrollLeft = here.offsetLeft - bar.offsetLeft - bar.clientWidth / 3; }
  });
})();
