// The page of `headway diff`: the result, the steps, and the matrices of the chosen step.

import { colour, largest } from "../../explore/static/colours.js";
import { h } from "../../explore/static/dom.js";
import { matrix, ramp } from "../../explore/static/matrix.js";
import { pixels, short } from "../../explore/static/numbers.js";

/** A number, "NaN", "Infinity", "-Infinity" or "not computed". @typedef {number | string} Cell */
/** @typedef {[number, number]} Pair  row and column */
/** The matrices are A, B and A − B. first, at: the first cell, and that with the largest difference. @typedef {{shapes: number[][], place: string, size: Pair, first: Pair, at: Pair, matrices?: Cell[][][]}} Values */
/** @typedef {{name: string, verdict: string, difference: Cell | null, limit: Cell, values: Values | null}} Step */
/** @typedef {{name: string, place: string, looks: string, in_all_layers: boolean}} Cause */
/** @typedef {{titles: Pair, dtype: string, conclusion: string, is_same: boolean, lowest: number, causes: Cause[], notes: string[], steps: Step[]}} Report */

const report = /** @type {Report} */ (JSON.parse(document.getElementById("report")?.textContent ?? ""));
const { steps, titles } = report;
const [header, nav, main] = /** @type {HTMLElement[]} */ (["header", "nav", "main"].map((name) => document.querySelector(name)));
const heads = [`A: ${titles[0]}`, `B: ${titles[1]}`, "A − B"];
const STACKED = 640; // pixels of width, below which the matrices are one above the other
const WRITTEN = 36; // pixels of a cell, below which its number is not written
const address = (/** @type {{name: string}} */ step) => `#${encodeURIComponent(step.name)}`;

/** The step of the address, or the first cause. */
function chosen() {
  const named = steps.find((step) => address(step) === location.hash);
  return named ?? steps.find((step) => step.name === report.causes[0]?.name) ?? steps.find((step) => step.verdict !== "same") ?? steps[0];
}

/** The exponent of how many times a difference is what rounding explains. @param {Step} step */
const exponent = ({ difference, limit }) => Math.log10(Number(difference) / Number(limit));
const exponents = steps.map(exponent).filter(Number.isFinite);
const [low, high] = [Math.floor(Math.min(-2, ...exponents)), Math.ceil(Math.max(2, ...exponents))];

/** A bar on a logarithmic scale; its line is what rounding explains. @param {Step} step */
function bar(step) {
  const percent = (/** @type {number} */ at) => `${(100 * (Math.max(low, Math.min(high, at)) - low)) / (high - low)}%`;
  return step.difference != null && h("div", { class: "track" },
    Number(step.difference) > 0 && h("span", { class: `fill ${step.verdict}`, style: { width: percent(exponent(step)) } }),
    h("span", { class: "ghost", style: { left: percent(0) } }));
}

/** A name that may be broken between its words. @param {string} name */
const breakable = (name) => name.split(/(?<=[._])/).flatMap((word) => [word, h("wbr")]);

/** The steps in groups of one layer. */
function list() {
  /** @type {[string, HTMLElement[]][]} */
  const groups = [];
  for (const step of steps) {
    const [, layer, rest] = step.name.match(/^(.*?\bblocks\.\d+)\.(.*)$/) ?? ["", step.name.match(/^(gradients|updates)\./)?.[1] ?? "outside the layers", ""];
    const size = step.difference == null ? "its difference is not known" : `difference ${short(Number(step.difference))}`;
    const link = h("a", { href: address(step), class: step.verdict, title: `${step.name}: ${size}, rounding explains ${short(Number(step.limit))}` },
      h("span", {}, breakable(rest || step.name.replace(`${layer}.`, ""))), bar(step) || h("span"), h("span", { class: `verdict ${step.verdict}` }, step.verdict));
    if (groups.at(-1)?.[0] !== layer) groups.push([layer, []]);
    groups.at(-1)?.[1].push(h("li", {}, link));
  }
  return groups.flatMap(([layer, links]) => [h("h2", {}, layer), h("ol", {}, links)]);
}

function top() {
  return [
    h("h1", {}, `${titles[0]} and ${titles[1]}`),
    h("p", { class: `conclusion${report.is_same ? " same" : ""}` }, report.conclusion),
    report.causes.length > 0 && h("ol", {}, report.causes.map((cause, i) => h("li", {},
      h("div", {}, i ? "then: " : "first wrong step: ", h("a", { href: address(cause) }, h("strong", {}, breakable(cause.name))), cause.in_all_layers && ", and the same in every layer"),
      cause.place && h("div", {}, `computed by ${cause.place}`), cause.looks && h("div", {}, cause.looks)))),
    report.notes.map((note) => h("p", {}, `note: ${note}`)),
    h("p", { class: "note" }, `Compared in ${report.dtype}. Differences are relative to the largest number of a step. The line in each bar is what rounding explains; the scale is logarithmic. The keys ↑ and ↓ choose a step.`),
  ].flat().filter((one) => one instanceof Node);
}

/** The matrices of a step. @param {Step} step @param {Values} values */
function matrices({ name, limit }, { matrices: cells, first, at, size, place, shapes }) {
  if (!cells) return [h("p", {}, `The shapes are ${shape(shapes[0])} and ${shape(shapes[1])}, so they cannot be subtracted.`)];
  const [rows, columns] = [cells[0].length, cells[0][0].length];
  const flat = cells.map((one) => one.flat());
  const numbers = flat.map((one) => one.map(Number));
  const isPlain = (/** @type {number} */ x) => Number.isFinite(x) && x > report.lowest;
  const most = largest(numbers.slice(0, 2).flat().filter(isPlain)) || 1;
  const scale = name.endsWith(".weights") && numbers.slice(0, 2).flat().every((x) => !(x < 0)) ? "share" : "signed";
  const isStacked = main.clientWidth < STACKED;
  const available = pixels((isStacked ? main.clientWidth - 36 : (main.clientWidth - 76) / 3) / columns, 5, 44);
  const width = available < WRITTEN ? Math.min(available, 30) : available;
  const facts = h("dl", { class: "facts" });
  const number = (/** @type {number} */ k, [i, j] = at) => cells[k][i - first[0]][j - first[1]];
  const say = (/** @type {Pair | null} */ cell) => {
    const here = cell ?? at;
    for (const one of drawn) one.light(...here);
    facts.replaceChildren(...[[cell ? "cell" : number(2) === 0 ? "all are equal" : "largest difference", `row ${here[0]}, column ${here[1]}`],
      ...heads.map((head, i) => [head, words(number(i, here))])]
      .map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))));
  };
  const drawn = numbers.map((data, k) => {
    // Where one of two cells has no number, the others show what rounding does not explain.
    const least = data.every(Number.isFinite) ? 0 : Number(limit) * most;
    const end = k < 2 ? most : Math.max(largest(data), least) || 1;
    const kind = /** @type {"share" | "signed"} */ (k < 2 ? scale : "signed");
    const isBlank = (/** @type {number} */ i, /** @type {number} */ j) => !isPlain(Number(number(k % 2, [i, j]))) && (k < 2 || number(2, [i, j]) === 0) || number(k, [i, j]) === "not computed";
    return { end, kind, ...matrix({
      name: `${["A", "B", "A − B"][k]} of ${name}`, data, rows, columns, first, at, scale: kind, most: end, width, height: rows < 4 ? 22 : Math.min(width, 22),
      hatched: isBlank, onhover: say,
      colour: (x) => colour(Number.isNaN(x) ? end : Math.max(-end, Math.min(end, x)), kind, end), // of one NaN or mask: as of the largest one
    }) };
  });
  const range = (/** @type {number} */ axis, /** @type {number} */ count) => (count < size[axis] ? `${first[axis]} to ${first[axis] + count - 1} of ${size[axis]}` : `all ${count}`);
  say(null);
  return [
    h("p", { class: "note" }, [place, `rows: ${range(0, rows)}`, `columns: ${range(1, columns)}`, `shape ${shape(shapes[0])}`].filter(Boolean).join("; ")),
    facts,
    h("div", { class: isStacked ? "stacked" : "compared" }, drawn.map(({ element, end, kind }, k) => h("div", {}, h("h3", {}, heads[k]), h("div", { class: "legend" }, short(kind === "share" ? 0 : -end), ramp(kind, end, 16), short(end)), h("div", { class: "scroll" }, element)))),
    flat.flat().some((x) => !isPlain(Number(x))) && h("p", { class: "note" }, "Hatched cells have no number: they are masked (−∞), NaN, or not computed; in the difference, they are equal or were not computed."),
  ];
}
const shape = (/** @type {number[]} */ sizes) => sizes.join(" × ") || "of one number";
const words = (/** @type {Cell} */ cell) => (typeof cell === "number" || !Number.isNaN(Number(cell)) ? short(Number(cell)) : cell);

function show() {
  const step = chosen();
  if (!step) return main.replaceChildren(h("p", {}, "No step was compared."));
  for (const link of nav.querySelectorAll("a")) {
    const isChosen = link.getAttribute("href") === address(step);
    link.toggleAttribute("aria-current", isChosen);
    link.tabIndex = isChosen ? 0 : -1;
    if (!isChosen) continue;
    const [own, all] = [link, nav].map((one) => one.getBoundingClientRect());
    nav.scrollTop += Math.min(0, own.top - all.top - 40) + Math.max(0, own.bottom + 20 - all.bottom); // only the list, not the page
    if (nav.contains(document.activeElement)) link.focus({ preventScroll: true });
  }
  const unknown = `This step was not found in ${titles[1]}. In a model without names a step is found by its numbers, which differ after a wrong step.`;
  const size = step.difference == null ? "" : `difference ${short(Number(step.difference))}; `;
  main.replaceChildren(
    h("div", { class: "row" }, h("h2", {}, breakable(step.name)), h("span", { class: `verdict ${step.verdict}` }, step.verdict), h("span", { class: "shape" }, `${size}rounding explains ${short(Number(step.limit))}`)),
    ...(step.values ? matrices(step, step.values) : [h("p", {}, unknown)]).filter((one) => one instanceof Node));
  document.body.dataset.drawn = step.name;
}
document.title = `${titles[0]} and ${titles[1]} · headway diff`;
header.replaceChildren(...top());
nav.replaceChildren(...list());
addEventListener("hashchange", show);
addEventListener("resize", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
document.addEventListener("keydown", (event) => {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key]; // a matrix that has the focus keeps them
  if (!by || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  event.preventDefault();
  const next = steps[steps.indexOf(chosen()) + by];
  if (next) location.replace(address(next));
});
show();
