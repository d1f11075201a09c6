// Save pictures.

import { h } from "./dom.js";

/** @param {Blob} content @param {string} name */
export function saveAs(content, name) {
  const href = URL.createObjectURL(content);
  h("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** The largest matrix on the page as a self-contained SVG. */
function drawing() {
  const all = [...document.querySelectorAll("main svg.matrix")];
  const size = (/** @type {Element} */ svg) => Number(svg.getAttribute("width")) * Number(svg.getAttribute("height"));
  const largest = all.sort((a, b) => size(b) - size(a))[0];
  if (!largest) return null;
  const style = getComputedStyle(document.body);
  let text = new XMLSerializer().serializeToString(largest).replaceAll("currentColor", style.color);
  text = text.replace(/var\((--[a-z]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  return { text, width: Number(largest.getAttribute("width")), height: Number(largest.getAttribute("height")), paper: style.backgroundColor };
}

export function pictureSVG() {
  const picture = drawing();
  if (picture) saveAs(new Blob([picture.text], { type: "image/svg+xml" }), "headway.svg");
}

export async function picturePNG() {
  const picture = drawing();
  if (!picture) return;
  const address = URL.createObjectURL(new Blob([picture.text], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { width: 2 * picture.width, height: 2 * picture.height }));
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.fillStyle = picture.paper;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(address);
  canvas.toBlob((blob) => blob && saveAs(blob, "headway.png"));
}
