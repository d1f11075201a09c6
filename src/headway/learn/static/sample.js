// A figure for a chapter that is not written yet.

import { largest } from "../../explore/static/colours.js";
import { matrix } from "../../explore/static/matrix.js";
import { book } from "./book.js";

/** @param {Record<string, any>} _ @param {import("./figure.js").Figure} figure */
export function draw(_, figure) {
  const data = book.inputs.flat();
  figure.say([["largest number", String(largest(data))]]);
  return matrix({
    name: "inputs", data, rows: book.inputs.length, columns: 3, first: [0, 0], rowLabels: book.sentence.split(" "), columnLabels: null,
    scale: "signed", most: figure.broken ? 1000 : largest(data), width: 60, height: 24,
  }).element;
}
