// Emails that were read in this browser: viewing one changes nothing on the server.
"use strict";

const REMEMBERED = 1000;
const opened = document.querySelector("main [data-opened]");

if (opened) {
  const read = [...readEmails().add(opened.dataset.opened)];
  localStorage.setItem("mailbox-read", JSON.stringify(read.slice(-REMEMBERED)));
}

document.addEventListener("live", mark);
// Also after going back from an email, and after reading one in another tab.
addEventListener("pageshow", mark);
addEventListener("storage", mark);

function readEmails() {
  return new Set(JSON.parse(localStorage.getItem("mailbox-read") ?? "[]"));
}

function mark() {
  const read = readEmails();
  for (const row of document.querySelectorAll(".mails [data-mail]")) {
    row.querySelector(".unread").hidden = read.has(row.dataset.mail);
  }
}
