/* What JavaScript adds to a page that waits for an email: htmx polls #progress; this announces each change once, and
   pauses while the page is hidden. */
"use strict";

const announcement = document.getElementById("announcement");
const details = document.getElementById("wrong-address");
const code = document.getElementById("code");
const title = document.title;
let told = progress().dataset.state;

function progress() {
  return document.getElementById("progress");
}

/* Announce each change once, but not the seconds. */
document.addEventListener("htmx:after:swap", () => {
  const state = progress().dataset.state;
  if (state === told) {
    return;
  }
  told = state;
  const steps = [...progress().querySelectorAll(".steps li")];
  const now = steps.findIndex((step) => step.hasAttribute("aria-current"));
  const said = steps.slice(state === "sent" ? now - 1 : now, now + 1);
  announcement.textContent = said.map((step) => step.textContent.trim()).join(" ");
  document.title = `${said[0].textContent.trim()} · ${title}`;
  details.open ||= state === "failed";
  awaitCode();
});

/* Focus the code field next, unless somebody is using something else. */
awaitCode();

function awaitCode() {
  if (code && told === "sent" && document.activeElement === document.body && !document.querySelector("[autofocus]")) {
    code.focus({ preventScroll: true });
  }
}

details.addEventListener("toggle", () => {
  if (details.open) {
    details.querySelector("input[type=email]").select();
  }
});

/* No requests while the page is hidden; coming back makes one at once. */
document.addEventListener("htmx:before:request", (event) => {
  if (document.hidden) {
    event.preventDefault();
  }
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    progress().dispatchEvent(new Event("look"));
  }
});

/* Six digits, however they were pasted, are formatted as in the email, and sent. */
code?.addEventListener("input", () => {
  const digits = code.value.normalize("NFKC").replace(/\D/g, "");
  if (digits.length === 6) {
    code.value = `${digits.slice(0, 3)} ${digits.slice(3)}`;
    // Not with another username, which takes more typing. Not after a wrong code either: correcting it digit by digit
    // must not count as tries.
    if (!code.form.elements.username && !code.defaultValue) {
      code.form.requestSubmit();
    }
  }
});
