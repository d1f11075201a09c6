// Rotary positions: each pair of features before and after its rotation.

import { h, s } from "./dom.js";
import { exact } from "./numbers.js";

/** @typedef {{data: ArrayLike<number>, rows: number, columns: number}} Matrix */

const SIZE = 46; // pixels of a dial

/**
 * One dial per pair of features of a token: the vector (a, b) before, thin, and after, in color.
 * Pair i consists of the features i and i + d/2. @param {Matrix} before @param {Matrix} after @param {number} row @param {string} role
 */
export function pairs(before, after, row, role) {
  const half = before.columns / 2;
  const at = (/** @type {Matrix} */ { data, columns }, /** @type {number} */ i) => [data[row * columns + i], data[row * columns + i + half]];
  const all = Array.from({ length: half }, (_, i) => ({ old: at(before, i), now: at(after, i) }));
  return h("div", { class: "pairs" }, all.map(({ old, now }, i) => {
    const length = Math.hypot(...now) || 1; // each dial has its own scale: only the angle matters
    const angle = (Math.atan2(old[0] * now[1] - old[1] * now[0], old[0] * now[0] + old[1] * now[1]) * 180) / Math.PI;
    const middle = SIZE / 2;
    const hand = (/** @type {number[]} */ [x, y], /** @type {object} */ look) => {
      const [to, up] = [middle + (x / length) * (middle - 5), middle - (y / length) * (middle - 5)];
      return [s("line", { x1: middle, y1: middle, x2: to, y2: up, ...look }), s("circle", { cx: to, cy: up, r: 2.2, ...look, "stroke-width": 0 })];
    };
    return h("figure", { "data-angle": angle, title: `features ${i} and ${i + half}: (${old.map(exact).join(", ")}) becomes (${now.map(exact).join(", ")})` },
      s("svg", { width: SIZE, height: SIZE, role: "img", "aria-label": `pair ${i}: rotated by ${angle.toFixed(1)} degrees` },
        s("circle", { cx: middle, cy: middle, r: middle - 2, fill: "none", stroke: "var(--line)" }),
        hand(old, { stroke: "var(--dim)", fill: "var(--dim)", "stroke-width": 1.2 }),
        hand(now, { stroke: `var(--${role})`, fill: `var(--${role})`, "stroke-width": 2.4 })),
      h("figcaption", {}, `${angle < 0 ? "−" : ""}${Math.abs(angle).toFixed(Math.abs(angle) < 9.95 ? 1 : 0)}°`));
  }));
}

/**
 * Rotate the pairs of features of each row as they were rotated from a row of `before` to that of
 * `after`; a single row there is for all rows of x. @param {Matrix} x @param {Matrix} before @param {Matrix} after
 */
export function turned(x, before, after) {
  const data = new Float64Array(x.data.length);
  const half = x.columns / 2;
  for (let i = 0; i < x.rows; i++) {
    for (let c = 0; c < half; c++) {
      const [one, from] = [i * x.columns + c, (i % before.rows) * x.columns + c];
      const [a, b, u, v] = [before.data[from], before.data[from + half], after.data[from], after.data[from + half]];
      const size = a * a + b * b; // the pair (u, v) is (a, b), multiplied as a complex number
      const [cos, sin] = size ? [(a * u + b * v) / size, (a * v - b * u) / size] : [1, 0];
      data[one] = x.data[one] * cos - x.data[one + half] * sin;
      data[one + half] = x.data[one] * sin + x.data[one + half] * cos;
    }
  }
  return { data, rows: x.rows, columns: x.columns };
}
