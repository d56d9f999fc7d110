// Refreshes a page: asks for it again and exchanges the parts that have changed. All works without it.
"use strict";
(() => {
  const main = document.querySelector("main[data-live]");
  if (!main) return;
  const pause = 1000 * Number(main.dataset.live);
  let etag = null;

  const nameOf = (element) =>
    element.id ? "#" + element.id
      : element.name ? element.name + "=" + element.value
        : element.getAttribute("href") || element.getAttribute("aria-label");

  // What somebody has done to a part since the server made it: ticks, opened details, where the focus is, how far it is scrolled.
  const keep = (part) => {
    const ticks = new Map([...part.querySelectorAll("input[type=checkbox], input[type=radio]")].map((e) => [nameOf(e), e.checked]));
    const open = new Map([...part.querySelectorAll("details[id]")].map((e) => [e.id, e.open]));
    const scrolled = [...part.querySelectorAll(".scroll")].map((e) => [e.scrollLeft, e.scrollTop]);
    const focused = part.contains(document.activeElement) ? nameOf(document.activeElement) : null;
    return { ticks, open, scrolled, focused };
  };
  const restore = (part, kept) => {
    for (const e of part.querySelectorAll("input[type=checkbox], input[type=radio]"))
      if (kept.ticks.has(nameOf(e))) e.checked = kept.ticks.get(nameOf(e));
    for (const e of part.querySelectorAll("details[id]")) if (kept.open.has(e.id)) e.open = kept.open.get(e.id);
    part.querySelectorAll(".scroll").forEach((e, i) => {
      if (kept.scrolled[i]) [e.scrollLeft, e.scrollTop] = kept.scrolled[i];
    });
    if (kept.focused !== null)
      for (const e of part.querySelectorAll("a, button, input, select, summary, .scroll"))
        if (nameOf(e) === kept.focused) { e.focus({ preventScroll: true }); break; }
  };

  const isBusy = (part) => {
    const active = document.activeElement;
    const types = part.contains(active) && active.matches("input:not([type=checkbox]):not([type=radio]), textarea, select");
    const chosen = document.getSelection();
    return types || (chosen && !chosen.isCollapsed && part.contains(chosen.anchorNode));
  };

  const exchange = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    let isWhole = true;
    for (const part of main.querySelectorAll("[data-part]")) {
      const next = fresh.querySelector(`[data-part="${CSS.escape(part.dataset.part)}"]`);
      if (!next || next.innerHTML === part.dataset.made) continue;
      if (isBusy(part)) { isWhole = false; continue; }
      const kept = keep(part);
      const made = next.innerHTML;
      part.replaceChildren(...next.childNodes);
      part.dataset.made = made;
      restore(part, kept);
    }
    return isWhole;
  };

  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, {
        headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store", redirect: "error", credentials: "same-origin",
      });
      if (answer.status === 200) {
        const text = await answer.text();
        etag = exchange(text) ? answer.headers.get("ETag") : null;
      } else if (answer.status !== 304) throw new Error(String(answer.status));
      delete main.dataset.stale;
    } catch {
      main.dataset.stale = "";
    }
  };
  const go = async () => { await look(); setTimeout(go, pause); };
  setTimeout(go, pause);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
})();
