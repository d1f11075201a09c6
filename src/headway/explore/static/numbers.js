// Numbers as text.

/** Three significant digits. @param {number} x */
export function short(x) {
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const text = x === 0 ? "0" : size < 1e-4 || size >= 1e5 ? x.toExponential(2) : String(Number(x.toPrecision(3)));
  return text.replace("-", "−").replace("e−", "e-");
}

/** As many digits as fit into so many pixels. @param {number} x @param {number} width */
export function fitting(x, width) {
  const texts = [short(x), ...[2, 1].map((digits) => Number(x.toPrecision(digits)).toString().replace(/^-/, "−"))];
  const fits = texts.find((text) => text.length * 5.9 <= width);
  return fits ?? x.toExponential(0).replace(/^-/, "−");
}

/** All digits that distinguish it from every other float32, or else float64. @param {number} x */
export function exact(x) {
  if (!Number.isFinite(x)) return short(x);
  let digits = 1;
  while (digits < 10 && Math.fround(Number(x.toPrecision(digits))) !== x) digits++;
  return String(digits < 10 ? Number(x.toPrecision(digits)) : x).replace(/^-/, "−");
}

/** A share as a percentage. @param {number} x */
export function percent(x) {
  return x > 0 && x < 0.0005 ? "<0.1 %" : `${(100 * x).toPrecision(x < 0.0995 ? 2 : 3)} %`;
}

/** A whole number of pixels within limits. @param {number} room @param {number} least @param {number} most */
export function pixels(room, least, most) {
  return Math.max(least, Math.min(most, Math.floor(room)));
}

/** A number as a term, with brackets if it is negative. @param {number} x */
export function bracket(x) {
  return x < 0 ? `(${short(x)})` : short(x);
}
