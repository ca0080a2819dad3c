// What JavaScript adds to lists: copying a text, and selecting all rows of a page.
"use strict";

const COPIED_SECONDS = 2;

document.documentElement.classList.add("scripted");
// Browsers give the clipboard only to pages over https, and to localhost.
document.documentElement.classList.toggle("can-copy", Boolean(navigator.clipboard));

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (button && !button.dataset.was) {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.dataset.was = button.textContent;
    button.textContent = button.dataset.done;
    setTimeout(() => {
      button.textContent = button.dataset.was;
      delete button.dataset.was;
    }, COPIED_SECONDS * 1000);
  }
});

document.addEventListener("change", (event) => {
  const form = event.target.form;
  const all = form?.querySelector("[data-all]");
  if (!all) {
    return;
  }
  const boxes = [...form.querySelectorAll(`[type=checkbox][name=${all.dataset.all}]`)];
  if (event.target === all) {
    boxes.forEach((box) => { box.checked = all.checked; });
  }
  const selected = boxes.filter((box) => box.checked).length;
  all.checked = selected === boxes.length;
  all.indeterminate = selected > 0 && !all.checked;
  for (const output of form.querySelectorAll("[data-selected]")) {
    output.textContent = selected ? `${output.dataset.selected} ${selected}` : "";
  }
});
