/* What the waiting page does besides, where scripts run: htmx asks for #progress again and again, and this counts
   the seconds in between, tells each change once, and rests while nobody looks. */
"use strict";

const announcement = document.getElementById("announcement");
const details = document.getElementById("wrong-address");
const code = document.getElementById("code");
const title = document.title;
let told = progress().dataset.state;

function progress() {
  return document.getElementById("progress");
}

/* Each change is said once; the seconds are not. */
document.addEventListener("htmx:after:swap", () => {
  rest();
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

/* Next comes the code, unless somebody is at something else. */
awaitCode();

function awaitCode() {
  if (told === "sent" && document.activeElement === document.body && !document.querySelector("[autofocus]")) {
    code.focus({ preventScroll: true });
  }
}

details.addEventListener("toggle", () => {
  if (details.open) {
    details.querySelector("input[type=email]").select();
  }
});

/* The seconds until another mail makes sense go by here too; until then the button rests. */
rest();
setInterval(() => {
  const countdown = progress().querySelector(".countdown");
  if (countdown) {
    // The last two are the server's to tell: it knows the words for one second, and for none.
    countdown.textContent = countdown.textContent.replace(/\d+/, (seconds) => Math.max(2, seconds - 1));
  }
}, 1000);

function rest() {
  const isResting = progress().querySelector(".countdown") !== null;
  const button = progress().querySelector("button");
  button.toggleAttribute("data-resting", isResting);
  button.setAttribute("aria-disabled", String(isResting));
}

document.addEventListener("submit", (event) => {
  if (event.target.querySelector("[data-resting]")) {
    event.preventDefault();
  }
}, true);

/* While nobody looks there is no need to ask; who comes back sees the news at once. */
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

/* Six digits, however they were pasted, are shown as the mail shows them, and sent. */
code.addEventListener("input", () => {
  const digits = code.value.normalize("NFKC").replace(/\D/g, "");
  if (digits.length === 6) {
    code.value = `${digits.slice(0, 3)} ${digits.slice(3)}`;
    // With another username there is more to type. And a wrong code comes back to be mended: digit by digit, of which
    // none may be taken for a try.
    if (!code.form.elements.username && !code.defaultValue) {
      code.form.requestSubmit();
    }
  }
});
