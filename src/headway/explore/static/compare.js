// Two matrices of the same step side by side, with their difference.

import { h } from "./dom.js";
import { exact, pixels } from "./numbers.js";
import { largest } from "./colours.js";
import { legend, matrix, pooled } from "./matrix.js";
import { note } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./matrix.js").Part} Part */

/** What is compared: the model before and after the edits, or two models. @param {App} app @returns {[string, string]} */
export function baseNames({ trace, base }) {
  const edited = trace.manifest.edits?.length !== base?.manifest.edits?.length;
  return edited ? ["before the edit", "after the edit"] : [base?.manifest.title ?? "", trace.manifest.title];
}

/**
 * Three pictures: the step before (or of the other model), the step now, and now − before.
 * @param {App} app @param {Part} before @param {Part} now @param {[string, string]} names
 */
export function sideBySide(app, before, now, names) {
  if (before.rows !== now.rows || before.columns !== now.columns) return note(`The shapes differ: ${before.rows} × ${before.columns} and ${now.rows} × ${now.columns}.`);
  const data = Float64Array.from(now.data, (x, i) => (x === before.data[i] ? 0 : x - before.data[i])); // −∞ − −∞ is 0 here
  const hidden = (/** @type {number} */ i, /** @type {number} */ j) => Boolean(before.hatched?.(i, j) && now.hatched?.(i, j));
  const most = Math.max(before.most, now.most);
  /** @type {[string, Part][]} */
  const all = [
    [names[0], { ...before, most }], [names[1], { ...now, most }],
    ["difference", { ...now, data, scale: "signed", most: largest(data) || 1, hatched: now.hatched && hidden }],
  ];
  const stacked = app.width < 640;
  const room = Math.min(app.width, 1400) / (stacked ? 1 : 3) - 90;
  const wide = now.columnLabels ? Infinity : Math.max(12, Math.floor(room / 5));
  const drawn = all.map(([title, part], i) => {
    const small = pooled(part, Infinity, wide);
    const cell = pixels(room / small.columns, 4, 44);
    const labels = i === 0 || stacked ? {} : { rowLabels: null };
    return {
      title,
      part: matrix({
        ...small, ...labels, width: cell, height: now.columnLabels ? Math.min(cell, 30) : 20, onpick: undefined,
        onhover: (at) => {
          for (const one of drawn) one.part.light(at?.[0] ?? null, at?.[1] ?? null);
          if (small.columns === now.columns) app.say(at ? values(all, now, at) : []);
        },
      }),
    };
  });
  return h("div", { class: "compared" }, drawn.map(({ title, part }, i) =>
    h("div", {}, h("h3", {}, title), part.element, i > 0 && legend(all[i][1].scale, all[i][1].most, false))));
}

/** @param {[string, Part][]} all @param {Part} now @param {[number, number]} cell @returns {[string, string][]} */
function values(all, now, [row, column]) {
  const [i, j] = [row - now.first[0], column - now.first[1]];
  return [["row", now.rowLabels?.[i] ?? String(row)], ["column", now.columnLabels?.[j] ?? String(column)],
    ...all.map(([title, part]) => /** @type {[string, string]} */ ([title, exact(part.data[i * now.columns + j])]))];
}
