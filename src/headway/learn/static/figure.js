// The frame of a live figure: title, the switch that breaks the idea, the drawing, its numbers and its caption.

import { button, h } from "../../explore/static/dom.js";

/** @typedef {{draw: (options: Record<string, any>, figure: Figure) => Node}} Kind */

/** A new kind of figure is a module and a line here. @type {Record<string, () => Promise<Kind>>} */
const KINDS = {
  sample: () => import("./sample.js"),
};

/** The figures of the page, by their elements. @type {Map<Element, Figure>} */
const FIGURES = new Map();

/** The figure of an element. @param {HTMLElement} element */
export function figureOf(element) {
  const figure = FIGURES.get(element) ?? new Figure(element);
  FIGURES.set(element, figure);
  return figure;
}

export class Figure {
  /** @param {HTMLElement} element  `<figure class="live">` */
  constructor(element) {
    this.element = element;
    /** Of the directive. @type {Record<string, any>} */
    this.options = JSON.parse(element.dataset.figure ?? "{}");
    /** What the reader has changed; it survives redraws. @type {Record<string, any>} */
    this.state = {};
    this.broken = false;
    this.large = false; // in a presentation
    this.drawing = /** @type {HTMLElement} */ (element.querySelector(".drawing"));
    this.numbers = h("dl", { class: "said", "aria-live": "polite" });
    this.drawing.after(this.numbers);
    this.toggle = this.options.without && button(`Break it: remove ${this.options.without}`, () => this.break(), { "aria-pressed": "false" });
    this.reset = button("Reset", () => { this.state = {}; this.broken = false; this.redraw(); }, { hidden: true });
    this.consequence = h("p", { class: "consequence", hidden: true });
    this.consequence.innerHTML = this.options.consequence; // rendered from the chapter
    element.prepend(h("div", { class: "row controls" }, this.toggle, this.reset), this.consequence);
    const title = element.querySelector("h3");
    if (title) element.prepend(title);
  }

  /** The pixels that a drawing may use. */
  get width() {
    return this.drawing.clientWidth;
  }

  /** The numbers below the figure. @param {[string, string][]} pairs */
  say(pairs) {
    this.numbers.replaceChildren(...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  break() {
    this.broken = !this.broken;
    this.redraw();
  }

  /** Draw again, also when the reader changes something. An error stays within the frame. */
  async redraw() {
    const { kind } = this.options;
    try {
      const load = KINDS[kind];
      if (!load) throw new Error(`unknown kind of figure: ${kind}`);
      const { draw } = await load();
      this.say([]);
      this.drawing.replaceChildren(draw(this.options, this));
    } catch (error) {
      this.drawing.replaceChildren(h("p", { class: "failed", role: "alert" }, `This figure failed: ${error instanceof Error ? error.message : error}`));
    }
    this.toggle?.setAttribute("aria-pressed", String(this.broken));
    this.consequence.hidden = !this.broken;
    this.reset.hidden = !this.broken && !Object.keys(this.state).length;
    this.element.classList.toggle("broken", this.broken);
    this.element.dataset.drawn = String(this.broken); // for tests
  }
}
