// Automatic updates of each element with data-live. There are no requests while the page is hidden, and a part that
// somebody is using stays unchanged.
"use strict";

const control = document.querySelector(".live");

if (control) {
  const isOn = control.querySelector("input");
  const { remember, seconds } = control.dataset;
  // The server's HTML: changes by other scripts do not count as news.
  const written = new Map([...document.querySelectorAll("[data-live]")].map((part) => [part.id, part.innerHTML]));
  let isAsking = false;

  isOn.checked = localStorage.getItem(remember) !== "off";
  isOn.addEventListener("change", () => {
    localStorage.setItem(remember, isOn.checked ? "on" : "off");
    check();
  });
  control.hidden = false;
  setInterval(check, Number(seconds) * 1000);
  document.addEventListener("visibilitychange", check);

  async function check() {
    if (!isOn.checked || document.hidden || isAsking) {
      return;
    }
    isAsking = true;
    try {
      const answer = await fetch(location.href, { headers: { "X-Live": "1" } });
      if (answer.ok) {
        update(new DOMParser().parseFromString(await answer.text(), "text/html"));
      }
    } catch {
      // The app may be restarting: try again next time.
    } finally {
      isAsking = false;
    }
  }

  function update(page) {
    for (const part of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(part.id);
      if (fresh && fresh.innerHTML !== written.get(part.id) && !isInUse(part)) {
        written.set(part.id, fresh.innerHTML);
        replace(part, fresh);
      }
    }
  }
}

/* Return whether somebody is typing in it, or ticked or selected something in it. */
function isInUse(part) {
  const marked = getSelection();
  return part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea")
    || part.querySelector("[type=checkbox]:checked") !== null
    || !marked.isCollapsed && marked.containsNode(part, true);
}

/* Replace the part's content, keeping the focus on the same link or button. */
function replace(part, fresh) {
  const focused = part.contains(document.activeElement) ? name(document.activeElement) : null;
  part.replaceChildren(...fresh.childNodes);
  document.dispatchEvent(new Event("live"));
  if (focused) {
    [...part.querySelectorAll("a, button, [tabindex]")].find((element) => name(element) === focused)
      ?.focus({ preventScroll: true });
  }
}

function name(element) {
  return [element.tagName, element.id, element.getAttribute("href"), element.dataset.copy].join(" ");
}
