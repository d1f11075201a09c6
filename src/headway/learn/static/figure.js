// The frame of a live figure: its title, the switch that breaks the idea, the drawing, its numbers and its caption.

import { button, h } from "../../explore/static/dom.js";

/** @typedef {{draw: (options: Record<string, any>, figure: Figure) => Node}} Kind */

/** A new kind of figure is a module and a line here. @type {Record<string, () => Promise<Kind>>} */
const KINDS = {
  axes: () => import("./axes.js"),
  bottleneck: () => import("./bottleneck.js"),
  cache: () => import("./cache.js"),
  dot: () => import("./dot.js"),
  dropout: () => import("./dropout.js"),
  gpt: () => import("./gpt.js"),
  heads: () => import("./heads.js"),
  leak: () => import("./leak.js"),
  masking: () => import("./masking.js"),
  memory: () => import("./memory.js"),
  positions: () => import("./positions.js"),
  softmax: () => import("./softmax.js"),
  spread: () => import("./spread.js"),
  steps: () => import("./steps.js"),
  tiles: () => import("./tiles.js"),
};

/** The figures of the page, by their elements. @type {Map<Element, Figure>} */
const FIGURES = new Map();

/** The figures of a part of the page. @param {ParentNode} part */
export function figuresOf(part) {
  return /** @type {HTMLElement[]} */ ([...part.querySelectorAll("figure.live")]).map((element) => {
    const figure = FIGURES.get(element) ?? new Figure(element);
    FIGURES.set(element, figure);
    return figure;
  });
}

export class Figure {
  /** @param {HTMLElement} element  `<figure class="live">`, which guide.py writes */
  constructor(element) {
    this.element = element;
    /** Of the directive. @type {Record<string, any>} */
    this.options = JSON.parse(element.dataset.figure ?? "{}");
    /** What the reader has changed; it survives redraws. @type {Record<string, any>} */
    this.state = {};
    this.broken = false;
    /** @type {[string, string][]} */
    this.said = [];
    this.large = false; // in a presentation, where the drawing is enlarged
    this.drawing = /** @type {HTMLElement} */ (element.querySelector(".drawing"));
    this.consequence = /** @type {HTMLElement | null} */ (element.querySelector(".consequence"));
    this.numbers = h("dl", { class: "said", "aria-live": "polite" });
    this.drawing.after(this.numbers);
    this.toggle = this.options.without && button(`Break it: remove ${this.options.without}`, () => {
      this.broken = !this.broken;
      this.redraw();
    }, { class: "break" });
    const reset = button("Reset", () => {
      this.state = {};
      this.broken = false;
      this.redraw();
    });
    element.querySelector(".head")?.append(h("span", { class: "row" }, this.toggle, reset));
  }

  /** The pixels that a drawing may use. */
  get width() {
    return this.drawing.clientWidth;
  }

  /** Show numbers below the drawing. @param {[string, string][]} pairs */
  say(pairs) {
    this.said = pairs;
    this.show(pairs);
  }

  /** Show the numbers of a cell instead, as long as the reader points at it. @param {[string, string][] | null} pairs */
  point(pairs) {
    this.show(pairs ?? this.said, pairs ? this.numbers.offsetHeight : 0); // the page does not move
  }

  /** @param {[string, string][]} pairs @param {number} [height]  at least, in pixels */
  show(pairs, height = 0) {
    this.numbers.style.minHeight = `${height}px`;
    this.numbers.replaceChildren(...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
  }

  /** Draw again, for example after a change of the state. An error is shown in the frame. */
  async redraw() {
    const { kind } = this.options;
    this.toggle?.setAttribute("aria-pressed", String(this.broken));
    this.element.classList.toggle("broken", this.broken);
    if (this.consequence) this.consequence.hidden = !this.broken;
    try {
      if (!KINDS[kind]) throw new Error(`there is no kind of figure "${kind}"`);
      const { draw } = await KINDS[kind]();
      this.say([]);
      this.drawing.replaceChildren(draw(this.options, this));
    } catch (error) {
      this.drawing.replaceChildren(h("p", { class: "failed", role: "alert" }, `This figure failed: ${error instanceof Error ? error.message : error}.`));
    }
    this.element.dataset.drawn = String(this.broken); // for tests
  }
}
