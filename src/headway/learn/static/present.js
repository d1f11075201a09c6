// The presentation: one figure, or the text between two figures, at a time, as large as the window allows.

import { button, h } from "../../explore/static/dom.js";
import { figuresOf } from "./figure.js";

/** @typedef {{title: string, parts: Element[]}} Slide */

const LARGEST = 3; // times the size on the page
const NARROWEST = 600; // pixels of the page, before it is enlarged
const BAR = 64; // pixels above and below it

/** The slides of a chapter. @param {HTMLElement} article @returns {Slide[]} */
function slidesOf(article) {
  return [...article.querySelectorAll(":scope > section")].flatMap((section) => {
    const [heading, ...rest] = section.children;
    /** @type {Element[][]} */
    const groups = [[]];
    for (const part of rest) {
      const alone = part.matches("figure, .exercise");
      if (alone || groups.at(-1)?.some((one) => one.matches("figure, .exercise"))) groups.push([part]);
      else groups.at(-1)?.push(part);
    }
    return groups.filter((parts) => parts.length).map((parts) => ({ title: heading.textContent ?? "", parts: [heading, ...parts] }));
  });
}

export class Presentation {
  /** @param {(by: number) => void} turn  goes to the next or previous chapter, if there is one */
  constructor(turn) {
    this.turn = turn;
    /** @type {HTMLElement | null} */
    this.article = null;
    this.at = 0;
    this.by = 1; // the direction of the last move
    this.main = /** @type {HTMLElement} */ (document.querySelector("main"));
    this.place = h("span", { class: "place", "aria-live": "polite" });
    this.bar = h("div", { class: "row slides" }, this.place,
      button("←", () => this.move(-1), { "aria-label": "previous slide" }),
      button("→", () => this.move(1), { "aria-label": "next slide" }),
      button("✕", () => this.leave(), { "aria-label": "leave the presentation", title: "Esc" }));
    window.addEventListener("resize", () => this.show());
    document.addEventListener("drawn", () => this.fit());
  }

  get open() {
    return this.article != null;
  }

  /** Begin where the reader is, or continue in another chapter. @param {HTMLElement} article */
  start(article) {
    const slides = slidesOf(article);
    const read = slides.findIndex(({ parts }) => parts.some((part, i) => i > 0 && part.getBoundingClientRect().bottom > BAR));
    this.at = !this.open ? Math.max(read, 0) : this.by < 0 ? slides.length - 1 : 0;
    this.article = article;
    document.body.append(this.bar);
    document.body.classList.add("present");
    this.show();
  }

  leave() {
    const { article } = this;
    if (!article) return;
    this.article = null;
    document.body.classList.remove("present");
    this.bar.remove();
    for (const name of ["zoom", "padding-top"]) this.main.style.removeProperty(name);
    for (const part of document.querySelectorAll(".away")) part.classList.remove("away");
    enlarge(article, false);
    slidesOf(article)[this.at].parts[1].scrollIntoView({ block: "center" });
  }

  /** @param {number} by */
  move(by) {
    if (!this.article) return;
    const to = this.at + by;
    this.by = by;
    if (to >= 0 && to < slidesOf(this.article).length) {
      this.at = to;
      this.show();
    } else this.turn(by);
  }

  show() {
    const { article } = this;
    if (!article) return;
    const slides = slidesOf(article);
    const slide = slides[this.at];
    for (const part of article.querySelectorAll(":scope > *, :scope > section > *")) {
      part.classList.toggle("away", !slide.parts.some((one) => part.contains(one)));
    }
    this.place.textContent = `${this.at + 1} / ${slides.length}`;
    document.body.dataset.slide = String(this.at); // for tests
    window.scrollTo(0, 0);
    this.fit();
    enlarge(article, true);
  }

  /** As large as the window allows. What does not fit at the size of the page can be scrolled. */
  fit() {
    if (!this.article) return;
    for (let zoom = Math.min(LARGEST, window.innerWidth / NARROWEST); zoom > 1; zoom *= 0.95) {
      this.main.style.setProperty("zoom", String(zoom));
      const parts = this.article.querySelectorAll(".drawing, .code, .plot, .equation");
      const wide = [...parts].some((part) => part.scrollWidth > part.clientWidth + 1);
      const free = window.innerHeight - BAR - this.article.getBoundingClientRect().height;
      if (free < 0 || wide) continue;
      this.main.style.setProperty("padding-top", `${(BAR + free / 3) / zoom}px`);
      return;
    }
    this.main.style.setProperty("zoom", "1");
    this.main.style.setProperty("padding-top", `${BAR}px`);
  }
}

/** Draw the figures that are shown, for a presentation or for the page. @param {HTMLElement} article @param {boolean} large */
function enlarge(article, large) {
  for (const figure of figuresOf(article)) {
    if (!large && !figure.large) continue;
    figure.large = large;
    if (!figure.element.matches(".away")) figure.redraw();
  }
}
