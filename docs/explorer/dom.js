// Small helpers: elements, formatted numbers, and rebuilding a part of the page without losing the keyboard's place.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

// Text children become text nodes, so that no name can become markup.
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const div = (className, ...children) => html("div", { class: className }, ...children);
const span = (className, ...children) => html("span", { class: className }, ...children);
const byId = (id) => document.getElementById(id);

// Replaces what an element holds. The element with the same data-key has the focus afterwards.
function replace(element, ...children) {
  const focused = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (focused !== undefined) element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

// Enter and Space do what a click does, for the parts of a drawing that act as buttons.
const asButton = (key, label, action) => ({
  "data-key": key,
  role: "button",
  tabindex: 0,
  "aria-label": label,
  onclick: (event) => {
    event.stopPropagation();
    action();
  },
  onkeydown: (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    action();
  },
});

const exact = (number) => number.toLocaleString("en-US");

function rounded(number) {
  const units = [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "K"],
  ];
  const [size, unit] = units.find(([size]) => number >= size) ?? [1, ""];
  return `${(number / size).toLocaleString("en-US", { maximumSignificantDigits: 4 })}${unit && ` ${unit}`}`;
}

function inBytes(bytes) {
  if (bytes === 0) return "0";
  const [size, unit] = bytes >= 2 ** 20 ? [2 ** 20, "MiB"] : [2 ** 10, "KiB"];
  return `${(bytes / size).toLocaleString("en-US", { maximumFractionDigits: bytes >= 100 * size ? 0 : 1 })} ${unit}`;
}

const asShape = (shape) => shape.join(" × ");
const asField = ({ field, step }) => (field === null ? "all" : `${exact(field)} px, every ${step}`);
