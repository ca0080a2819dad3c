/* What forms can do besides, where scripts run: show a password, measure a new one, notice mistyped domains,
   and send once. */
"use strict";

/* What makes room for itself waits while a pointer is down, or the button under it would move away before the click. */

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

/* Show what was typed. */

for (const secret of document.querySelectorAll(".secret")) {
  const input = secret.querySelector("input");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "reveal";
  button.setAttribute("aria-controls", input.id);
  button.addEventListener("click", () => show(input.type === "password"));
  // A password must leave as one, or browsers keep it among the words they offer.
  input.form.addEventListener("submit", () => show(false));
  secret.classList.add("has-reveal");
  secret.append(button);
  show(false);

  function show(isShown) {
    input.type = isShown ? "text" : "password";
    // What is heard begins with what is seen, so that it can be said to the browser.
    const what = document.createElement("span");
    what.className = "unseen";
    what.textContent = ` ${secret.dataset.what}`;
    button.replaceChildren(isShown ? secret.dataset.hide : secret.dataset.show, what);
  }
}

/* Measure a new password. What the server refuses is refused here, for the same reason: see is_strong() there. */

const GUESSED_LENGTH = 24;
const GUESSED_WORK = 4096;
// The letters that zxcvbn reads digits and signs as.
const LEET = ["4@", "8", "({[<", "3", "69", "1!|", "1|7", "0", "$5", "+7", "%", "2"];

for (const meter of document.querySelectorAll(".meter")) {
  const input = document.getElementById(meter.dataset.for);
  const level = meter.querySelector(".level");
  const reasons = JSON.parse(meter.dataset.reasons);
  const levels = meter.dataset.levels.split("|");
  const bars = document.createElement("div");
  let timer;

  bars.className = "bars";
  bars.append(...levels.map(() => document.createElement("i")));
  meter.prepend(bars);

  input.addEventListener("focus", load, { once: true });
  // With every field of the form, since its words count.
  input.form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(unlessPressing, 150, measure);
  });

  function load() {
    const script = document.createElement("script");
    script.src = meter.dataset.script;
    script.addEventListener("load", () => unlessPressing(measure));
    document.head.append(script);
  }

  function measure() {
    const typed = input.value;
    meter.hidden = !typed || !window.zxcvbn;
    if (meter.hidden) {
      return;
    }
    if (Array.from(typed).length < Number(meter.dataset.minimum)) {
      say(1, meter.dataset.short);
      return;
    }
    const { score, feedback } = window.zxcvbn(beginning(typed.normalize("NFKC")), words());
    if (score <= 1) {
      const said = [feedback.warning, ...feedback.suggestions].filter(Boolean).map(translate);
      say(1, meter.dataset.weak.replace("…", said.join(" ") || translate("Add another word or two.")));
    } else {
      say(score, levels[score - 1]);
    }
  }

  /* As much as the server judges. */
  function beginning(password) {
    const judged = Array.from(password).slice(0, GUESSED_LENGTH);
    while (readings(judged) * judged.length ** 2 > GUESSED_WORK) {
      judged.pop();
    }
    return judged.join("");
  }

  function readings(judged) {
    const seen = new Set();
    return LEET.reduce((product, signs) => {
      const found = Array.from(signs).filter((sign) => judged.includes(sign));
      const choices = found.reduce((sum, sign) => sum + (seen.has(sign) ? 2 : 1), 0);
      found.forEach((sign) => seen.add(sign));
      return product * (choices || 1);
    }, 1);
  }

  function words() {
    const typed = ["username", "full_name", "email"].map((name) => input.form.elements[name]?.value.trim() ?? "");
    const parts = [...typed, meter.dataset.words].flatMap((word) => word.split(/[\s@._-]+/));
    return [...typed, ...parts].filter(Boolean);
  }

  function translate(text) {
    const sentence = text.endsWith(".") ? text : `${text}.`;
    return reasons[sentence] ?? sentence;
  }

  function say(score, text) {
    meter.dataset.level = score;
    // Told again only when it changed.
    if (level.textContent !== text) {
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

/* One letter missing, too many or wrong, or two neighbours swapped: as in pages/mail_hosts.py. */
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

// Who comes back finds the form usable.
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
  }
});
