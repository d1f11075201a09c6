// The example of Raschka's book, which all figures begin with: six words, their vectors and three matrices.

/**
 * @typedef {number[][]} Matrix
 * @type {{sentence: string, inputs: Matrix, W_query: Matrix, W_key: Matrix, W_value: Matrix}}
 */
export const book = JSON.parse(document.getElementById("book")?.textContent ?? "{}");
