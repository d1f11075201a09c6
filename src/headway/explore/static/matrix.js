// A matrix as a picture with labels, as a table, and as a thumbnail.

import { h, s } from "./dom.js";
import { exact, fitting, short } from "./numbers.js";
import { colour, ink, packed } from "./colours.js";

/** @typedef {import("./colours.js").Scale} Scale */
/** @typedef {[number, number]} Cell  row and column in the complete matrix */
/**
 * A part of a matrix and how to draw it. beside: leave space for labels, to align with others.
 * size: rows and columns in words, where the picture has fewer. title: the heading in a product.
 * large: for a projector. hidden: cells that are still empty. lit: outlined rows and columns, from and to.
 * at: the cell where the arrow keys start. colour: of a number, if it is not that of the scale.
 * @typedef {{
 *   name: string, data: ArrayLike<number>, rows: number, columns: number, first: Cell,
 *   rowLabels?: string[] | null, columnLabels?: string[] | null, transposed?: boolean,
 *   scale: Scale, most: number, colour?: (number: number) => string, hatched?: (row: number, column: number) => boolean,
 *   width: number, height: number, role?: string, beside?: boolean, title?: string, size?: [number, number],
 *   large?: boolean, hidden?: (i: number, j: number) => boolean, lit?: {rows: [number, number], columns: [number, number]},
 *   onhover?: (cell: Cell | null) => void, onpick?: (cell: Cell) => void, at?: Cell | null,
 * }} Part
 */
/** @typedef {{element: SVGElement, light: (row: number | null, column: number | null) => void}} Drawn */

/** Pixels: the smallest font of a number and the smallest cell that has one; the font and the room of labels. */
const PAGE = { font: 10, width: 31, height: 14, label: 11, left: 74, top: 58 };
export const LARGE = { font: 36, width: 116, height: 46, label: 30, left: 176, top: 44 };
const LETTERS = 9; // of a label
let patterns = 0;

const POOLED = 48; // maximum rows or columns of a factor and of a thumbnail of features

/** A matrix product: the left factor on the left, the right factor above the result. @param {Part} left @param {Part} top @param {Part} result */
export function product(left, top, result) {
  const [one, other] = [matrix(left), matrix(top)];
  const made = matrix({
    ...result,
    onhover: (cell) => {
      one.light(cell?.[0] ?? null, null);
      other.light(null, cell?.[1] ?? null);
      result.onhover?.(cell);
    },
  });
  const title = (/** @type {Part} */ part) => h("h3", { class: part.role ?? part.title }, `${part.title}${part.transposed ? "ᵀ" : ""} `, h("span", { class: "shape" }, part.size?.join(" × ") ?? `${part.rows} × ${part.columns}`));
  return h("div", { class: "product" },
    h("div", { class: "above" }, title(top), other.element),
    h("div", { class: "beside" }, title(left), one.element),
    h("div", { class: "result" }, title(result), made.element));
}

/**
 * A smaller matrix for a picture: of each group of cells the number with the largest absolute value.
 * @template {{data: ArrayLike<number>, rows: number, columns: number}} M @param {M} matrix @param {number} [most]  rows @param {number} [wide]  columns
 */
export function pooled(matrix, most = POOLED, wide = POOLED) {
  const { data, rows, columns } = matrix;
  const [height, width] = [Math.min(rows, most), Math.min(columns, wide)];
  if (height === rows && width === columns) return matrix;
  const largest = new Float64Array(height * width);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = Math.floor((i * height) / rows) * width + Math.floor((j * width) / columns);
      const number = data[i * columns + j];
      if (Math.abs(number) > Math.abs(largest[at])) largest[at] = number;
    }
  }
  return { ...matrix, data: largest, rows: height, columns: width };
}

/** @param {Part} part @returns {Part} */
export function transposed(part) {
  const data = new Float64Array(part.rows * part.columns);
  for (let i = 0; i < part.rows; i++) for (let j = 0; j < part.columns; j++) data[j * part.rows + i] = part.data[i * part.columns + j];
  return { ...part, data, rows: part.columns, columns: part.rows, first: [part.first[1], part.first[0]], size: part.size && [part.size[1], part.size[0]], transposed: true };
}

/** @param {Part} part @returns {Drawn} */
export function matrix(part) {
  const { rows, columns, first, width, height, scale, most } = part;
  const type = part.large ? LARGE : PAGE;
  const font = Math.max(type.font, Math.min(width / 3.9, 0.55 * height));
  const left = part.rowLabels || part.beside ? type.left : 1;
  const top = part.columnLabels || part.beside ? type.top : 1;
  const [hatched, pattern] = hatch();
  const cells = s("g", {});
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const number = part.data[i * columns + j];
      const [cannot, hidden] = [part.hatched?.(first[0] + i, first[1] + j), part.hidden?.(i, j)];
      const fill = hidden ? "var(--soft)" : cannot ? hatched : part.colour?.(number) ?? colour(number, scale, most);
      const [x, y] = [left + j * width, top + i * height];
      cells.append(s("rect", { x, y, width: width - (width > 6 ? 1 : 0), height: height - (height > 6 ? 1 : 0), fill }));
      if (width >= type.width && height >= type.height && !cannot && !hidden) {
        const at = { x: x + width / 2, y: y + height / 2 + 0.35 * font, fill: ink(fill), "text-anchor": "middle", "font-size": font, "data-value": number };
        const text = fitting(number, ((part.large ? 0.88 : 1) * width * 10) / font);
        cells.append(s("text", at, part.large && Math.abs(number) < 0.1 && text.includes("e") ? number.toFixed(2).replace("-", "−") : text));
      }
    }
  }
  const pointed = part.onhover || part.onpick;
  const shown = { fill: "none", stroke: "currentColor", "stroke-width": 2, class: "lit", visibility: "hidden" };
  const [row, column] = [s("rect", shown), s("rect", shown)];
  const element = s(
    "svg",
    {
      class: part.onpick ? "matrix pickable" : "matrix", role: pointed ? "application" : "img",
      "aria-label": `${part.name}: ${rows} by ${columns}${pointed ? "; arrows move" : ""}${part.onpick ? ", enter opens a cell" : ""}`,
      width: left + columns * width + (part.columnLabels && !part.large ? PAGE.top / 2 : 1), height: top + rows * height + 1,
      "font-family": "system-ui, sans-serif", tabindex: pointed ? 0 : false,
    },
    pattern,
    cells,
    part.rowLabels?.map((text, i) => label(text, LETTERS, first[0] + i, { "text-anchor": "end", "font-size": fits(height, type), x: left - type.label / 2, y: top + (i + 0.5) * height + 0.36 * type.label })),
    part.columnLabels?.map((text, j) => {
      const [x, y] = [left + (j + 0.5) * width + (part.large ? 0 : 3), top - type.label / 2];
      const turned = part.large ? { "text-anchor": "middle" } : { "text-anchor": "start", transform: `rotate(-50 ${x} ${y})` };
      return label(text, part.large ? Math.floor(width / (0.6 * type.label)) : LETTERS, first[1] + j, { "font-size": fits(width, type), x, y, ...turned });
    }),
    part.lit && outline(part.lit, left, top, width, height),
    row,
    column,
  );
  const light = (/** @type {number | null} */ i, /** @type {number | null} */ j) => {
    band(row, i == null ? null : i - first[0], rows, (at) => [left, top + at * height, columns * width, height]);
    band(column, j == null ? null : j - first[1], columns, (at) => [left + at * width, top, width, rows * height]);
  };
  if (pointed) listen(element, part, left, top, light);
  return { element, light };
}

/** A table of the numbers; `data-value` and the tooltip have all digits. @param {Part} part */
export function table(part) {
  const { data, rows, columns, first, hatched } = part;
  const range = (/** @type {number} */ count) => Array.from({ length: count }, (_, i) => i);
  return h(
    "table",
    { class: "numbers" },
    h("caption", {}, `${part.name}, rows ${first[0]} to ${first[0] + rows - 1}, columns ${first[1]} to ${first[1] + columns - 1}`),
    h("thead", {}, h("tr", {}, h("td"), range(columns).map((j) =>
      h("th", { scope: "col" }, part.columnLabels?.[j] ?? first[1] + j)))),
    h("tbody", {}, range(rows).map((i) =>
      h("tr", {}, h("th", { scope: "row" }, part.rowLabels?.[i] ?? first[0] + i), range(columns).map((j) => {
        const number = data[i * columns + j];
        const cannot = hatched?.(first[0] + i, first[1] + j) && number === 0;
        return h("td", { title: exact(number), "data-value": number }, cannot ? "╱" : short(number));
      })))),
  );
}

/** The legend of the colours. @param {Scale} scale @param {number} most @param {boolean} masks */
export function legend(scale, most, masks) {
  const middle = scale === "share" ? most / 4 : 0; // the middle of the scale, which uses the square root
  const [hatched, pattern] = hatch();
  return h(
    "div",
    { class: "legend" },
    h("span", {}, short(scale === "share" ? 0 : -most)),
    ramp(scale, most, 24),
    h("span", {}, `${short(most)}  (middle ${short(middle)})`),
    masks && h("span", { class: "masked-key" }, s("svg", { width: 12, height: 12 }, pattern, s("rect", { width: 12, height: 12, fill: hatched })), " masked (not allowed; distinct from a weight of 0)"),
  );
}

/** The colours of a scale, from its lowest number to its highest. @param {Scale} scale @param {number} most @param {number} steps */
export function ramp(scale, most, steps) {
  return s("svg", { width: steps * 5, height: 12, "aria-hidden": true }, Array.from({ length: steps }, (_, i) => {
    const part = i / (steps - 1);
    const value = scale === "share" ? most * part ** 2 : most * (2 * part - 1);
    return s("rect", { x: i * 5, y: 0, width: 5, height: 12, fill: colour(value, scale, most) });
  }));
}

/**
 * A thumbnail of a matrix on a canvas. hatched: which cells are masked.
 * @param {{data: ArrayLike<number>, rows: number, columns: number}} numbers @param {Scale} scale @param {number} most
 * @param {(i: number, j: number) => boolean} [hatched]
 */
export function thumbnail(numbers, scale, most, hatched) {
  const { data, rows, columns } = numbers;
  const zoom = Math.max(1, Math.floor(96 / Math.max(rows, columns)));
  const [width, height] = [columns * zoom, rows * zoom];
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width, height, class: "thumbnail" }));
  const pixels = new Uint32Array(width * height); // faster than drawing; there may be 144 pictures
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const cannot = hatched?.(i, j);
      const fill = cannot ? 0 : packed(data[i * columns + j], scale, most);
      for (let y = i * zoom; y < (i + 1) * zoom; y++) {
        for (let x = j * zoom; x < (j + 1) * zoom; x++) pixels[y * width + x] = cannot ? hatching(x + y) : fill;
      }
    }
  }
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height);
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

/** Transparent grey with thin lines, as in the large picture. @param {number} diagonal */
function hatching(diagonal) {
  return diagonal % 6 === 0 ? 0xa0888888 : 0x40888888;
}

/** The fill of masked cells, and its definition. Each picture has its own, because that of a hidden picture is not drawn. @returns {[string, SVGElement]} */
function hatch() {
  const id = `hatch-${patterns++}`;
  const pattern = s(
    "pattern",
    { id, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    s("rect", { width: 6, height: 6, fill: "#8883" }),
    s("rect", { width: 1.5, height: 6, fill: "#888a" }),
  );
  return [`url(#${id})`, s("defs", {}, pattern)];
}

/** The font size of a label next to so many pixels. @param {number} room @param {typeof PAGE} type */
function fits(room, type) {
  return Math.max(7, Math.min(type.label, room));
}

/** @param {string} text @param {number} most  letters @param {number} token @param {object} place */
function label(text, most, token, place) {
  const letters = [...text];
  const shown = letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text;
  return s("text", { ...place, fill: "currentColor", class: "label", "data-token": token }, s("title", {}, text), shown);
}

/** @param {NonNullable<Part["lit"]>} lit @param {number} left @param {number} top @param {number} width @param {number} height */
function outline({ rows, columns }, left, top, width, height) {
  return s("rect", {
    class: "outlined", x: left + columns[0] * width, y: top + rows[0] * height, width: (columns[1] - columns[0]) * width - 1,
    height: (rows[1] - rows[0]) * height - 1, fill: "none", stroke: "var(--accent)", "stroke-width": 6,
  });
}

/** @param {SVGElement} rect @param {number | null} at @param {number} count @param {(at: number) => number[]} place */
function band(rect, at, count, place) {
  const inside = at != null && at >= 0 && at < count;
  rect.setAttribute("visibility", inside ? "visible" : "hidden");
  if (!inside) return;
  ["x", "y", "width", "height"].forEach((name, i) => rect.setAttribute(name, String(place(at)[i])));
}

/** @param {SVGElement} element @param {Part} part @param {number} left @param {number} top @param {Drawn["light"]} light */
function listen(element, part, left, top, light) {
  const { rows, columns, first, width, height } = part;
  /** @type {Cell | null} */
  let current = part.at ?? null;
  const move = (/** @type {Cell | null} */ cell) => {
    current = cell;
    light(cell?.[0] ?? null, cell?.[1] ?? null);
    part.onhover?.(cell);
  };
  const under = (/** @type {PointerEvent | MouseEvent} */ event) => {
    const box = element.getBoundingClientRect();
    const shrunk = box.width / Number(element.getAttribute("width")); // on a narrow screen
    const i = Math.floor(((event.clientY - box.top) / shrunk - top) / height);
    const j = Math.floor(((event.clientX - box.left) / shrunk - left) / width);
    return /** @type {Cell | null} */ (i >= 0 && i < rows && j >= 0 && j < columns ? [first[0] + i, first[1] + j] : null);
  };
  element.addEventListener("pointermove", (event) => move(under(event)));
  element.addEventListener("pointerleave", () => move(null));
  element.addEventListener("click", (event) => {
    const cell = under(event);
    if (cell) part.onpick?.(cell);
  });
  element.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const by = !event.shiftKey && steps[/** @type {keyof typeof steps} */ (event.key)];
    if (by) {
      const [i, j] = current ?? [first[0] - by[0], first[1] - by[1]];
      const clamp = (/** @type {number} */ at, /** @type {number} */ low, /** @type {number} */ count) =>
        Math.min(Math.max(at, low), low + count - 1);
      move([clamp(i + by[0], first[0], rows), clamp(j + by[1], first[1], columns)]);
    } else if (event.key === "Enter" && current) part.onpick?.(current);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}
