// The page of the guide: shows one chapter at a time and draws its figures.

import { button, h } from "../../explore/static/dom.js";
import { equation } from "../../explore/static/math.js";
import { figuresOf } from "./figure.js";
import { Presentation } from "./present.js";
import { follow } from "./progress.js";

const KEYS = [
  ["← →", "previous and next chapter; in a presentation: slide"], ["p", "presentation: one figure or paragraph at a time, large"],
  ["esc", "leave the presentation, close the contents"], ["tab, arrows, enter", "into a matrix, between its cells, change a number"], ["?", "these keys"],
];

const articles = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("article")]);
const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { "aria-label": "keys" }, h("h2", {}, "Keys"),
  h("dl", {}, KEYS.map(([key, what]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])),
  h("form", { method: "dialog" }, h("button", {}, "close"))));
const menu = button("Contents", () => contents(!document.body.classList.contains("open")), { class: "menu", "aria-controls": "contents", "aria-expanded": "false" });
const presentation = new Presentation((by) => {
  const other = articles[articles.indexOf(current()) + by];
  if (other) location.hash = other.dataset.name ?? "";
});

/** The heading or other element of the address. */
function target() {
  return document.getElementById(decodeURIComponent(location.hash.slice(1)));
}

/** The chapter of the address. */
function current() {
  return target()?.closest("article") ?? articles[0];
}

/** Open or close the contents, which are a drawer on a narrow screen. @param {boolean} open */
function contents(open) {
  document.body.classList.toggle("open", open);
  menu.setAttribute("aria-expanded", String(open));
  const link = /** @type {HTMLElement | null} */ (document.querySelector("#contents [aria-current], #contents a"));
  if (open) link?.focus();
}

function show() {
  const shown = current();
  const name = shown.dataset.name ?? "";
  for (const article of articles) article.hidden = article !== shown;
  for (const link of document.querySelectorAll("#contents a")) {
    if (link.getAttribute("href") === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${shown.querySelector("h1")?.textContent} · Headway`;
  document.body.dataset.shown = name;
  contents(false);
  return Promise.all(figuresOf(shown).map((figure) => figure.redraw()));
}

async function moved() {
  const place = presentation.open ? null : target();
  const drawn = show();
  if (presentation.open && presentation.article !== current()) presentation.start(current());
  await drawn;
  if (place?.matches("h1")) window.scrollTo(0, 0);
  else place?.scrollIntoView();
}

/** @param {KeyboardEvent} event */
function pressed(event) {
  const at = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || at.closest("input, select, textarea, dialog")) return;
  const along = (/** @type {number} */ by) => {
    if (presentation.open) presentation.move(by);
    else presentation.turn(by);
  };
  /** @type {Record<string, () => void>} */
  const acts = {
    ArrowLeft: () => along(-1), ArrowRight: () => along(1),
    p: () => { if (presentation.open) presentation.leave(); else presentation.start(current()); },
    Escape: () => { if (presentation.open) presentation.leave(); else if (document.body.classList.contains("open")) { contents(false); menu.focus(); } },
    "?": () => dialog.showModal(),
  };
  if (presentation.open) Object.assign(acts, { PageUp: acts.ArrowLeft, PageDown: acts.ArrowRight });
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

document.documentElement.classList.add("scripts"); // without them all chapters are shown
for (const element of document.querySelectorAll("article .equation")) element.replaceWith(equation(element.textContent ?? ""));
document.querySelector("header .row")?.append(menu, button("Present", () => presentation.start(current()), { title: "p" }), button("?", () => dialog.showModal(), { "aria-label": "keys" }));
document.body.append(dialog);
window.addEventListener("hashchange", moved);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
let width = innerWidth;
window.addEventListener("resize", () => {
  if (innerWidth === width || presentation.open) return; // a phone hides its address bar
  width = innerWidth;
  show();
});
document.addEventListener("keydown", pressed);
document.getElementById("contents")?.addEventListener("click", (event) => {
  if (event.target instanceof Element && event.target.closest("a")) contents(false); // also for the chapter that is shown
});
moved();
if (location.protocol === "http:") follow();
