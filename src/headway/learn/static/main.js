// The page of the guide: shows one chapter at a time and draws its figures.

import { button } from "../../explore/static/dom.js";
import { equation } from "../../explore/static/math.js";
import { figureOf } from "./figure.js";

const articles = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("article")]);

/** The chapter of the address. */
function current() {
  const target = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
  return target?.closest("article") ?? articles[0];
}

function show() {
  const shown = current();
  for (const article of articles) article.hidden = article !== shown;
  for (const link of document.querySelectorAll("#contents a")) {
    link.toggleAttribute("aria-current", link.getAttribute("href") === `#${shown.dataset.name}`);
  }
  for (const element of /** @type {NodeListOf<HTMLElement>} */ (shown.querySelectorAll("figure.live"))) figureOf(element).redraw();
  document.title = `${shown.querySelector("h1")?.textContent} · Headway`;
  document.body.classList.remove("open");
  document.body.dataset.drawn = location.hash; // for tests
}

for (const element of document.querySelectorAll("article .equation")) element.replaceWith(equation(element.textContent ?? ""));
document.querySelector("header .row")?.append(button("Contents", () => document.body.classList.toggle("open"), { class: "menu" }));
window.addEventListener("hashchange", () => {
  show();
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
show();
