// The presentation: one figure, or the text between two figures, at a time, as large as the window allows.

import { button, h } from "../../explore/static/dom.js";
import { figuresOf } from "./figure.js";

/** @typedef {{title: string, parts: Element[]}} Slide */

const NARROW = 640; // pixels; on a window that is narrower nothing is enlarged, and a tall slide can be scrolled
const WIDTHS = [640, 760, 880, 1000, 1120, 1280, 1600]; // pixels of a slide before it is enlarged
const SIDE = 240; // pixels of a second column, with its gap: the text of a figure; also in guide.css
const [BAR, EDGE] = [46, 12]; // pixels above the slide, and around it
const LINES = 12; // of a text; the next paragraph is on another slide
const LETTERS = 75; // of a line

/** About how many lines a part of a text has. @param {Element} part */
function linesOf(part) {
  if (part.matches(".equation")) return 2;
  if (part.matches("pre, table, ul, ol")) return 1 + (part.textContent?.trim().split(/\n+/).length ?? 0);
  return 1 + Math.ceil((part.textContent?.length ?? 0) / LETTERS);
}

/** The slides of a chapter. @param {HTMLElement} article @returns {Slide[]} */
function slidesOf(article) {
  return [...article.querySelectorAll(":scope > section")].flatMap((section) => {
    const [heading, ...rest] = section.children;
    /** @type {Element[][]} */
    const groups = [[]];
    for (const part of rest) {
      const alone = "figure, .exercise";
      const last = /** @type {Element[]} */ (groups.at(-1));
      const full = [...last, part].reduce((sum, one) => sum + linesOf(one), 0) > LINES;
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
    this.title = h("span", { class: "title" });
    this.bar = h("div", { class: "row slides" }, this.title, this.place,
      button("←", () => this.move(-1), { "aria-label": "previous slide" }),
      button("→", () => this.move(1), { "aria-label": "next slide" }),
      button("✕", () => this.leave(), { "aria-label": "leave the presentation", title: "Esc" }));
    window.addEventListener("resize", () => this.show());
    new ResizeObserver(() => this.enlarge()).observe(this.main);
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
    this.main.removeAttribute("style");
    this.main.classList.remove("beside");
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
    this.title.textContent = this.at ? slide.title : "";
    this.place.textContent = `${this.at + 1} / ${slides.length}`;
    window.scrollTo(0, 0);
    this.fit(article);
  }

  /** The pixels of a slide, across and down. */
  get room() {
    return [window.innerWidth - 2 * EDGE, window.innerHeight - BAR - EDGE];
  }

  /** Also after a change in a figure, which may be taller then. */
  enlarge() {
    const { article, main, room: [across, down] } = this;
    if (!article) return;
    const scale = across < NARROW ? 1 : Math.min(across / main.offsetWidth, down / article.offsetHeight);
    const [left, top] = [window.innerWidth - scale * main.offsetWidth, Math.max(0, down - scale * article.offsetHeight)];
    main.style.transform = `translate(${left / 2}px, ${BAR + top / 3}px) scale(${scale})`;
  }

  /** As large as the window allows: try widths, with one column and with two. @param {HTMLElement} article */
  async fit(article) {
    const mine = ++this.turns;
    const { main } = this;
    const figures = figuresOf(article).filter(({ element }) => !element.matches(".away"));
    const sides = article.querySelector(":is(.live, .exercise):not(.away)") ? [0, SIDE] : [0];
    const drawn = async (/** @type {number} */ width) => {
      Object.assign(main.style, { width: `${width}px`, transform: "" });
      main.classList.remove("beside");
      for (const figure of figures) {
        figure.large = true;
        await figure.redraw(); // for the room that it has at this width
      }
    };
    const placed = (/** @type {number} */ width, /** @type {number} */ side) => {
      main.style.width = `${width + side}px`;
      main.classList.toggle("beside", side > 0);
    };
    const [across, down] = this.room;
    let best = { scale: 0, width: Math.min(across, NARROW), side: 0 };
    for (const width of across < NARROW ? [] : WIDTHS) {
      if (across / width <= best.scale) break; // cannot become larger
      await drawn(width);
      for (const side of sides) {
        placed(width, side);
        const parts = [...article.querySelectorAll(".drawing, .scroll, .code, .equation, table")];
        const wide = parts.some((part) => part.scrollWidth > part.clientWidth + 1);
        const scale = Math.min(across / (width + side), down / article.offsetHeight);
        if (scale > best.scale && (!wide || width === WIDTHS.at(-1))) best = { scale, width, side };
      }
    }
    await drawn(best.width);
    if (mine !== this.turns) return; // another slide is shown
    placed(best.width, best.side);
    this.enlarge();
    document.body.dataset.slide = String(this.at); // for tests
  }
}
