// Colours of numbers. Colour-blind people can order all scales; the light diverging one is
// ColorBrewer's RdBu (Brewer 2003). 0 has the colour of the page, and large numbers differ from it.

const LIGHT = ["#f7f5fb", "#ded8ee", "#c1b6de", "#a390cc", "#866cb8", "#6a499f", "#4f2984", "#330c5f"];
const DARK = ["#24222b", "#3a2f52", "#53407c", "#6f55a3", "#8d6fc4", "#ab8fdc", "#cab4ee", "#ece2fb"];
const DIVERGING_DARK = [
  ...["#b3d8ff", "#7db6f7", "#4d8cd9", "#33619c", "#25405f", "#1b1c21"],
  ...["#572b2b", "#963c36", "#d4574a", "#f58371", "#ffbcb0"],
];
const DIVERGING = [
  ...["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#ffffff"],
  ...["#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"],
];

/** @typedef {"share" | "signed"} Scale */

/**
 * The colour of a number on a scale that ends at `most`. Shares use the square root, so that
 * small weights are visible.
 * @param {number} x @param {Scale} scale @param {number} most @returns {string}
 */
export function colour(x, scale, most) {
  const at = place(x, scale, most);
  return scale === "share" ? between(dark.matches ? DARK : LIGHT, Math.sqrt(at)) : between(dark.matches ? DIVERGING_DARK : DIVERGING, at);
}

/** The place of a number between the ends of a scale, from 0 to 1. @param {number} x @param {Scale} scale @param {number} most */
function place(x, scale, most) {
  const part = most > 0 && Number.isFinite(x) ? x / most : 0;
  return Math.min(Math.max(scale === "share" ? part : (part + 1) / 2, 0), 1);
}

/** On a dark page large weights are bright. */
const dark = matchMedia("(prefers-color-scheme: dark)");

/** @type {Map<string, Uint32Array>} */
const PALETTES = new Map();
const SHADES = 512;

/** `colour` as a canvas keeps it: alpha, blue, green, red. @param {number} x @param {Scale} scale @param {number} most */
export function packed(x, scale, most) {
  const kind = `${scale}${dark.matches}`;
  let palette = PALETTES.get(kind);
  if (!palette) {
    palette = Uint32Array.from({ length: SHADES + 1 }, (_, i) => {
      const [red, green, blue] = channels(colour(scale === "share" ? i / SHADES : (2 * i) / SHADES - 1, scale, 1));
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    PALETTES.set(kind, palette);
  }
  return palette[Math.round(place(x, scale, most) * SHADES)];
}

/** Black or white, whichever is more readable on a colour. @param {string} rgb */
export function ink(rgb) {
  const [red, green, blue] = channels(rgb);
  return 0.3 * red + 0.6 * green + 0.1 * blue > 140 ? "#111111" : "#ffffff";
}

/**
 * The largest finite absolute value: the end of a signed scale.
 * @param {ArrayLike<number>} numbers
 */
export function largest(numbers) {
  let most = 0;
  for (let i = 0; i < numbers.length; i++) {
    const size = Math.abs(numbers[i]);
    if (size > most && size < Infinity) most = size;
  }
  return most;
}

/** @param {string[]} stops @param {number} place */
function between(stops, place) {
  const at = place * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [channels(stops[low]), channels(stops[low + 1])];
  const mixed = from.map((value, i) => Math.round(value + (to[i] - value) * (at - low)));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

/** @param {string} rgb */
function channels(rgb) {
  return [1, 3, 5].map((at) => Number.parseInt(rgb.slice(at, at + 2), 16));
}
