// The page: which tab is shown, the link that holds everything chosen, and light or dark.
"use strict";

const VIEWS = { architecture: ArchitectureView, live: LiveView };

// "#live?image=3" -> ["live", parameters]
function readLink() {
  const [name, query = ""] = location.hash.slice(1).split("?");
  return [Object.hasOwn(VIEWS, name) ? name : "architecture", new URLSearchParams(query)];
}

let shown;
const linkOf = (name) => document.querySelector(`nav a[data-view="${name}"]`);

function show() {
  const [name, parameters] = readLink();
  shown = name;
  for (const key of Object.keys(VIEWS)) {
    byId(key).hidden = key !== name;
    const link = linkOf(key);
    if (key === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  VIEWS[name].read(parameters);
  VIEWS[name].render();
}

function keepLink() {
  const parameters = new URLSearchParams();
  VIEWS[shown].write(parameters);
  const query = parameters.toString().replaceAll("%2C", ",");
  const link = `#${shown}${query ? `?${query}` : ""}`;
  history.replaceState(null, "", link);
  linkOf(shown).setAttribute("href", link); // the way back from the other tab
}

// ---- light or dark: the same choice as the site's other pages, which keep it under the same name

function stored() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // a browser that keeps nothing
  }
}

function setTheme(theme) {
  document.documentElement.style.colorScheme = theme === "light" || theme === "dark" ? theme : "light dark";
}

function toggleTheme() {
  const wanted = document.documentElement.style.colorScheme;
  const isDark = wanted === "dark" || (wanted !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  const theme = isDark ? "light" : "dark";
  setTheme(theme);
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // chosen for this visit only
  }
  VIEWS[shown].render();
}

setTheme(stored());
byId("theme").addEventListener("click", toggleTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => VIEWS[shown].render());
window.addEventListener("hashchange", show);
for (const view of Object.values(VIEWS)) view.onChange = keepLink;
show();
