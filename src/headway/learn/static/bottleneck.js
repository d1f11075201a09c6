// A sentence and its translation: through one vector, or with a look at every word.

import { button, h, s } from "../../explore/static/dom.js";
import { slider } from "./controls.js";

/** @typedef {import("./figure.js").Figure} Figure */
/**
 * Two sentences. links: "0-0 1-2", which English word or sign belongs to which German one, counted
 * from 0. exact: the share of such sentences that a translator with and one without attention
 * translates exactly, as measured.
 * @typedef {{clauses: string, english: string, german: string, links: string, exact: {with: number, without: number}}} Pair
 */

const [ROW, COLUMN, GAP, BOX] = [21, 104, 150, 34]; // pixels: of a word, of its column, between the columns; of the vector

/** The words and signs of a sentence. @param {string} text */
function pieces(text) {
  return text.match(/[\p{L}]+|[^\p{L}\s]/gu) ?? [];
}

/** How many English words are still needed after so many German ones. @param {[number, number][]} links @param {number} written */
export function needed(links, written) {
  return new Set(links.filter(([, german]) => german >= written).map(([english]) => english)).size;
}

/**
 * Option: pairs. While the figure is broken there is no attention.
 * @param {Record<string, any>} options @param {Figure} figure
 */
export function draw(options, figure) {
  const { state } = figure; // pair; written: German words
  /** @type {Pair[]} */
  const pairs = options.pairs;
  const holder = h("div", {});
  const measured = pairs.map(({ clauses, exact }) => h("div", { class: "bars" }, /** @type {const} */ (["with", "without"]).map((name) =>
    h("div", { class: "bar" }, h("span", {}, name === "with" ? clauses : ""),
      h("span", { class: "track" }, h("span", { class: `fill ${name}`, style: { width: `${100 * exact[name]}%` } })),
      h("span", { class: "number" }, `${name}: ${Math.round(100 * exact[name])} %`)))));
  const choices = pairs.map(({ clauses }, at) => button(clauses, () => { Object.assign(state, { pair: at, written: 0 }); show(); }));

  function show() {
    const chosen = state.pair ?? 1;
    const pair = pairs[chosen];
    choices.forEach((choice, at) => choice.setAttribute("aria-pressed", String(at === chosen)));
    measured.forEach((bars, at) => bars.toggleAttribute("aria-current", at === chosen));
    const [english, german] = [pieces(pair.english), pieces(pair.german)];
    const links = /** @type {[number, number][]} */ (pair.links.split(" ").map((link) => link.split("-").map(Number)));
    const picture = h("div", { class: "scroll" });
    const change = (/** @type {number} */ written) => {
      const next = links.filter(([, at]) => at === written).map(([at]) => at);
      const kept = needed(links, written);
      picture.replaceChildren(translation(english, german, links, written, figure.broken));
      figure.say([
        ["next German word", german[written] ?? "none: the translation is complete"],
        ["it translates", next.map((at) => english[at]).join(" ") || "nothing"],
        figure.broken ? ["words and signs that the vector must still hold", String(kept)] : ["English words and signs that it can look at", `all ${english.length}`],
      ]);
    };
    const written = Math.min(state.written ?? 0, german.length);
    holder.replaceChildren(
      slider("German words written", { least: 0, most: german.length, value: written }, (count) => { state.written = count; change(count); }),
      picture);
    change(written);
  }

  show();
  return h("div", { class: "bottleneck" },
    h("div", { class: "row" }, h("span", {}, "Between subject and verb:"), choices),
    h("div", { class: "pictures" }, holder, h("div", {}, h("h3", {}, "Sentences translated exactly, as measured"), measured)));
}

/**
 * The words in two columns, and the lines between them.
 * @param {string[]} english @param {string[]} german @param {[number, number][]} links @param {number} written @param {boolean} broken
 */
function translation(english, german, links, written, broken) {
  const rows = Math.max(english.length, german.length);
  const [left, right, height] = [COLUMN, COLUMN + GAP, rows * ROW + 26];
  const y = (/** @type {number} */ at) => 24 + (at + 0.5) * ROW;
  const middle = { x: left + GAP / 2, y: y((rows - 1) / 2) };
  const line = (/** @type {number} */ i, /** @type {number} */ j) => {
    const now = j === written;
    const points = broken
      ? `M${left} ${y(i)} Q${middle.x - BOX} ${middle.y} ${middle.x} ${middle.y} Q${middle.x + BOX} ${middle.y} ${right} ${y(j)}`
      : `M${left} ${y(i)} L${right} ${y(j)}`;
    return s("path", { d: points, class: now ? "now" : j < written ? "done" : "later" });
  };
  const words = (/** @type {string[]} */ column, /** @type {number} */ x, /** @type {(at: number) => string} */ kind) => column.map((word, at) =>
    s("text", { x, y: y(at) + 5, "text-anchor": x < middle.x ? "end" : "start", class: kind(at) }, word));
  const current = new Set(links.filter(([, j]) => j === written).map(([i]) => i));
  const later = new Set(links.filter(([, j]) => j > written).map(([i]) => i));
  return s("svg", { width: right + COLUMN, height, viewBox: `0 0 ${right + COLUMN} ${height}`, class: "translation", role: "img", "aria-label": `${english.join(" ")} → ${german.slice(0, written).join(" ")}` },
    s("text", { x: left, y: 16, "text-anchor": "end", class: "head" }, "English, read"),
    s("text", { x: right, y: 16, class: "head" }, "German, written"),
    links.map(([i, j]) => line(i, j)),
    broken && s("rect", { x: middle.x - BOX / 2, y: middle.y - BOX, width: BOX, height: 2 * BOX, rx: 6, class: "vector" }),
    words(english, left - 8, (at) => (current.has(at) ? "now" : later.has(at) ? "later" : "done")),
    words(german, right + 8, (at) => (at === written ? "now" : at < written ? "written" : "unwritten")));
}
