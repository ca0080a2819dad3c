/* What JavaScript adds to forms: showing a password, measuring a new one, noticing mistyped domains, sending once. */
"use strict";

/* Changes that move the page wait while a pointer is down: otherwise the button under it would move away. */

const postponed = new Set();
let isPressing = false;

addEventListener("pointerdown", (event) => { isPressing = event.button === 0; }, true);
for (const type of ["pointerup", "pointercancel"]) {
  addEventListener(type, () => {
    isPressing = false;
    setTimeout(() => {
      postponed.forEach((change) => change());
      postponed.clear();
    });
  }, true);
}

function unlessPressing(change) {
  if (isPressing) {
    postponed.add(change);
  } else {
    change();
  }
}

/* Show a password. */

for (const secret of document.querySelectorAll(".secret")) {
  const input = secret.querySelector("input");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "reveal";
  button.setAttribute("aria-controls", input.id);
  button.addEventListener("click", () => show(input.type === "password"));
  // It must be sent as a password, or browsers would store it for autocompletion.
  input.form.addEventListener("submit", () => show(false));
  secret.classList.add("has-reveal");
  secret.append(button);
  show(false);

  function show(isShown) {
    input.type = isShown ? "text" : "password";
    // The accessible name begins with the visible one, so that voice control finds it.
    const what = document.createElement("span");
    what.className = "unseen";
    what.textContent = ` ${secret.dataset.what}`;
    button.replaceChildren(isShown ? secret.dataset.hide : secret.dataset.show, what);
  }
}

/* Measure a new password: the server answers as it will when the form is sent. */

// Most people type the next key before this.
const MEASURE_MS = 300;

for (const meter of document.querySelectorAll(".meter")) {
  const input = document.getElementById(meter.dataset.for);
  const level = meter.querySelector(".level");
  const bars = document.createElement("div");
  let asked = new AbortController();
  let timer;

  bars.className = "bars";
  bars.append(...Array.from({ length: 4 }, () => document.createElement("i")));
  meter.prepend(bars);

  // On input in any field of the form, since the others' words count too.
  input.form.addEventListener("input", () => {
    clearTimeout(timer);
    asked.abort();
    timer = setTimeout(measure, MEASURE_MS);
  });

  async function measure() {
    asked = new AbortController();
    const { signal } = asked;
    // If it cannot be measured now, show nothing.
    const verdict = input.value ? await ask(signal).catch(() => ({})) : {};
    if (!signal.aborted) {
      unlessPressing(() => say(verdict));
    }
  }

  async function ask(signal) {
    const body = new URLSearchParams(new FormData(input.form));
    for (const other of input.form.querySelectorAll(".secret input")) {
      if (other !== input) {
        body.delete(other.name);
      }
    }
    const answer = await fetch(meter.dataset.url, { method: "POST", body, signal, redirect: "error" });
    return answer.ok ? answer.json() : {};
  }

  function say({ level: reached, text }) {
    meter.hidden = !text;
    meter.dataset.level = reached;
    // Announced again only if it changed.
    if (text && level.textContent !== text) {
      level.textContent = text;
    }
  }
}

/* Notice a mistyped domain. */

for (const hint of document.querySelectorAll(".meant")) {
  const input = document.getElementById(hint.dataset.for);
  const domains = hint.dataset.domains.split(" ");

  input.addEventListener("change", () => unlessPressing(notice));

  function notice() {
    const [, local, domain] = /^(.+)@(.+)$/.exec(input.value.trim().toLowerCase()) ?? [];
    const meant = domain && !domains.includes(domain) && !hint.dataset.real.split(" ").includes(domain)
      && domains.find((common) => isOneSlipAway(domain, common));
    hint.replaceChildren(...(meant ? [offer(`${input.value.trim().slice(0, local.length)}@${meant}`)] : []));
  }

  function offer(address) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link";
    button.textContent = hint.dataset.text.replace("…", address);
    button.addEventListener("click", () => {
      input.value = address;
      hint.replaceChildren();
      input.focus();
    });
    return button;
  }
}

/* One letter missing, extra or wrong, or two neighbors swapped: as in pages/shared/email_domains.py. */
function isOneSlipAway(typed, meant) {
  let start = 0;
  while (start < typed.length && typed[start] === meant[start]) {
    start += 1;
  }
  const rest = typed.slice(start);
  const other = meant.slice(start);
  const isSwapped = rest.length > 1 && rest[0] === other[1] && rest[1] === other[0] && rest.slice(2) === other.slice(2);
  return rest.slice(1) === other.slice(1) || rest.slice(1) === other || rest === other.slice(1) || isSwapped;
}

/* Send once, however often it is pressed. */

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) {
      event.preventDefault();
    }
    form.dataset.sent = "yes";
  });
}

// After going back, the form can be sent again.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
  }
});
