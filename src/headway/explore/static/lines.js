// Weights as lines from queries to keys; the line width is the weight.

import { s } from "./dom.js";
import { short } from "./numbers.js";

/** @typedef {import("./matrix.js").Part} Part */

const [HEIGHT, LEFT, RIGHT, TOP] = [24, 110, 430, 28];

/** Queries at the left, keys at the right. @param {Part} part */
export function lines(part) {
  const { data, rows, columns, first } = part;
  const y = (/** @type {number} */ i) => TOP + (i + 0.5) * HEIGHT;
  const paths = s("g", { fill: "none", stroke: "var(--weights)", "stroke-linecap": "round" });
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const weight = data[i * columns + j];
      if (weight < 0.005) continue; // too thin to see
      const middle = (LEFT + RIGHT) / 2;
      paths.append(
        s(
          "path",
          {
            d: `M${LEFT} ${y(i)} C${middle} ${y(i)} ${middle} ${y(j)} ${RIGHT} ${y(j)}`,
            "stroke-width": 9 * weight, "stroke-opacity": 0.2 + 0.7 * weight, "data-row": i, "data-column": j,
          },
          s("title", {}, `${part.rowLabels?.[i]} attends to ${part.columnLabels?.[j]}: ${short(weight)}`),
        ),
      );
    }
  }
  const only = (/** @type {string} */ side, /** @type {number | null} */ at) => {
    for (const path of paths.children) {
      const other = at != null && path.getAttribute(`data-${side}`) !== String(at);
      path.setAttribute("visibility", other ? "hidden" : "visible");
    }
  };
  const names = (/** @type {string} */ side, /** @type {string[]} */ labels, /** @type {number} */ start) =>
    labels.map((text, i) =>
      s(
        "text",
        {
          x: side === "row" ? LEFT - 10 : RIGHT + 10, y: y(i) + 4, "text-anchor": side === "row" ? "end" : "start",
          "font-size": 13, fill: "currentColor", class: "label", "data-token": start + i, tabindex: 0,
          onpointerenter: () => only(side, i), onpointerleave: () => only(side, null),
          onfocus: () => only(side, i), onblur: () => only(side, null),
        },
        text,
      ),
    );
  const head = { y: 16, "font-size": 12, fill: "currentColor", opacity: 0.7 };
  return s(
    "svg",
    {
      class: "matrix lines", role: "img", "aria-label": `${part.name} as lines`, "font-family": "system-ui, sans-serif",
      width: RIGHT + 110, height: TOP + Math.max(rows, columns) * HEIGHT + 8,
    },
    s("text", { ...head, x: LEFT - 10, "text-anchor": "end" }, "queries"),
    s("text", { ...head, x: RIGHT + 10 }, "keys"),
    paths,
    names("row", part.rowLabels ?? [], first[0]),
    names("column", part.columnLabels ?? [], first[1]),
  );
}
