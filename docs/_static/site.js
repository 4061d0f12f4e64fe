// What scrolls sideways can be scrolled with the keyboard.
function focusWhatScrolls() {
  for (const each of document.querySelectorAll("pre, .table-wrapper, p:has(> img)")) {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  }
}
addEventListener("load", focusWhatScrolls);
addEventListener("resize", focusWhatScrolls);
