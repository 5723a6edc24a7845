// Fetch this page every two seconds, and replace the data-live elements that have changed. Open
// details stay open, and the focus is kept.
"use strict";
const seen = new Map();

async function refresh() {
  if (document.hidden) return;
  let text;
  try {
    const answer = await fetch(location.href);
    if (!answer.ok) return;
    text = await answer.text();
  } catch {
    document.body.classList.add("gone");
    return;
  }
  document.body.classList.remove("gone");
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (!fresh || fresh.innerHTML === seen.get(old.id)) continue;
    seen.set(old.id, fresh.innerHTML);
    for (const unfolded of old.querySelectorAll("details[open]")) {
      page.getElementById(unfolded.id)?.setAttribute("open", "");
    }
    const focused = old.contains(document.activeElement) && document.activeElement.id;
    old.replaceWith(fresh);
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }
}

setInterval(refresh, 2000);
