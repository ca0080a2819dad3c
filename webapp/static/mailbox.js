// Emails that were read in this browser: viewing one changes nothing on the server.
"use strict";

const REMEMBERED = 1000;
const read = new Set(JSON.parse(localStorage.getItem("mailbox-read") ?? "[]"));
const opened = document.querySelector("main [data-opened]");

if (opened) {
  read.add(opened.dataset.opened);
  localStorage.setItem("mailbox-read", JSON.stringify([...read].slice(-REMEMBERED)));
}

document.addEventListener("live", mark);
// Also after going back from an email.
addEventListener("pageshow", mark);

function mark() {
  for (const row of document.querySelectorAll(".mails [data-mail]")) {
    row.querySelector(".unread").hidden = read.has(row.dataset.mail);
  }
}
