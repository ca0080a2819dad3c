/* Count down the seconds until another email makes sense; until then its button is disabled. */
"use strict";

rest();
document.addEventListener("htmx:after:swap", rest);

setInterval(() => {
  const countdown = document.querySelector(".countdown");
  if (!countdown) {
    return;
  }
  const seconds = /\d+/.exec(countdown.textContent) - 1;
  // Only the server has the words for one second. On a page that it does not update, the countdown ends a second early.
  if (seconds < 2 && "alone" in countdown.dataset) {
    countdown.remove();
    rest();
  } else {
    countdown.textContent = countdown.textContent.replace(/\d+/, Math.max(2, seconds));
  }
}, 1000);

function rest() {
  const isResting = document.querySelector(".countdown") !== null;
  const button = document.querySelector(".resend");
  button.toggleAttribute("data-resting", isResting);
  button.setAttribute("aria-disabled", String(isResting));
}

document.addEventListener("submit", (event) => {
  if (event.target.querySelector("[data-resting]")) {
    event.preventDefault();
    // forms.js must not take the form as sent.
    event.stopPropagation();
  }
}, true);
