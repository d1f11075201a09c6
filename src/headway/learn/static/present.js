// The presentation: one figure, or the text between two figures, at a time, as large as the window allows.

import { button, h } from "../../explore/static/dom.js";
import { figuresOf } from "./figure.js";

/** @typedef {{title: string, parts: Element[]}} Slide */

const LARGEST = 3; // times the size on the page
const [NARROW, WIDE] = [600, 1280]; // pixels of the page before it is enlarged, at the largest and at the smallest size
const BAR = 64; // pixels above and below it
const LETTERS = 900; // of a text; the next paragraph is on another slide

/** The slides of a chapter. @param {HTMLElement} article @returns {Slide[]} */
function slidesOf(article) {
  return [...article.querySelectorAll(":scope > section")].flatMap((section) => {
    const [heading, ...rest] = section.children;
    /** @type {Element[][]} */
    const groups = [[]];
    for (const part of rest) {
      const alone = "figure, .exercise";
      const last = /** @type {Element[]} */ (groups.at(-1));
      const letters = [...last, part].reduce((sum, one) => sum + (one.textContent?.length ?? 0), 0);
      const full = letters > LETTERS && !part.matches(".equation"); // which belongs to the text before it
      if (full || part.matches(alone) || last.some((one) => one.matches(alone))) groups.push([part]);
      else last.push(part);
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
    this.turns = 0; // only the latest fitting continues
    this.main = /** @type {HTMLElement} */ (document.querySelector("main"));
    this.place = h("span", { class: "place", "aria-live": "polite" });
    this.bar = h("div", { class: "row slides" }, this.place,
      button("←", () => this.move(-1), { "aria-label": "previous slide" }),
      button("→", () => this.move(1), { "aria-label": "next slide" }),
      button("✕", () => this.leave(), { "aria-label": "leave the presentation", title: "Esc" }));
    window.addEventListener("resize", () => this.show());
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
    this.turns++;
    document.body.classList.remove("present");
    this.bar.remove();
    for (const name of ["zoom", "padding-top"]) this.main.style.removeProperty(name);
    for (const part of document.querySelectorAll(".away")) part.classList.remove("away");
    for (const figure of figuresOf(article).filter(({ large }) => large)) {
      figure.large = false;
      figure.redraw();
    }
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
    window.scrollTo(0, 0);
    this.fit(article);
  }

  /** As large as the window allows; what is too tall at the smallest size can be scrolled. @param {HTMLElement} article */
  async fit(article) {
    const mine = ++this.turns;
    const figures = figuresOf(article).filter(({ element }) => !element.matches(".away"));
    const least = Math.max(1, window.innerWidth / WIDE);
    let zoom = Math.max(least, Math.min(LARGEST, window.innerWidth / NARROW));
    const smaller = figures.length ? 0.8 : 0.9; // figures are drawn again for each size
    for (let fits = false; !fits; zoom = Math.max(least, zoom * smaller)) {
      this.main.style.setProperty("zoom", String(zoom));
      this.main.style.setProperty("padding-top", `${BAR / zoom}px`);
      for (const figure of figures) {
        figure.large = true;
        await figure.redraw(); // for the room that it has at this size
      }
      if (mine !== this.turns) return; // another slide is shown
      const parts = article.querySelectorAll(".drawing, .scroll, .code, .equation");
      const wide = [...parts].some((part) => part.scrollWidth > part.clientWidth + 1);
      const free = window.innerHeight - BAR - article.getBoundingClientRect().height;
      fits = (free >= 0 && !wide) || zoom === least;
      if (free > 0) this.main.style.setProperty("padding-top", `${(BAR + free / 3) / zoom}px`);
    }
    document.body.dataset.slide = String(this.at); // for tests
  }
}
