// Shows new mail by itself. Without this script "Check again" does the same.
const SECONDS = 2;
const PARTS = ["count", "mails"];
const auto = document.querySelector("#auto");
const isOn = auto.querySelector("input");

isOn.checked = localStorage.getItem("mailbox-auto") !== "off";
isOn.addEventListener("change", () => localStorage.setItem("mailbox-auto", isOn.checked ? "on" : "off"));
auto.hidden = false;

async function check() {
  if (!isOn.checked || document.hidden) return;
  const answer = await fetch(location.href);
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of PARTS) show(document.getElementById(part), page.getElementById(part));
}

// Changes nothing that looks the same, and keeps the focus where it is.
function show(old, fresh) {
  if (withoutTokens(old) === withoutTokens(fresh)) return;
  const focused = document.activeElement?.id;
  old.replaceChildren(...fresh.childNodes);
  if (focused) document.getElementById(focused)?.focus();
}

// Each answer has a CSRF token of its own.
function withoutTokens(part) {
  const copy = part.cloneNode(true);
  copy.querySelectorAll("input[type=hidden]").forEach((input) => input.remove());
  return copy.innerHTML;
}

// The app may be restarting: the next check tells.
setInterval(() => check().catch(() => {}), SECONDS * 1000);
