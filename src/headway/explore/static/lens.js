// The logit lens: the token that each layer would predict; explore/lens.py computes it.

import { h } from "./dom.js";
import { percent, pixels } from "./numbers.js";
import { colour, ink } from "./colours.js";
import { legend } from "./matrix.js";
import { isMasked, positionOf } from "./next.js";
import { edits, note, words } from "./panel.js";

/** @typedef {import("./main.js").App} App */
/** @typedef {import("./main.js").View} View */

const COLUMN = 78; // pixels
const COLUMNS = 12; // the maximum
const TEXT = {
  sentence: "Each row ends the model after one layer: the final norm and the output layer turn the residual stream of that layer into the probabilities of the next token. Down a column you see at which layer the prediction appears (the logit lens, nostalgebraist 2020).",
  equation: "logits = head(norm(x)),  lens = softmax(logits)", rung: null,
};

/** @param {App} app @returns {Promise<View>} */
export async function lensView(app) {
  const { trace } = app;
  const position = positionOf(app);
  const { tokens, vocabulary = [], written = [] } = trace.manifest;
  const [rows, known] = trace.header["lens.tokens"].shape;
  const first = tokens.length - known; // the first position with a prediction
  const count = Math.min(known, pixels((app.width - 100) / COLUMN, 2, COLUMNS));
  const from = Math.max(first, Math.min(position - Math.floor(count / 2), tokens.length - count));
  const positions = Array.from({ length: count }, (_, i) => from + i);
  const masked = isMasked(trace);
  const display = (/** @type {number} */ id) => vocabulary[id] ?? `(${id})`;
  const followed = (/** @type {number} */ at) => (masked ? null : (tokens[at + 1] ?? written[0]));
  const body = await Promise.all(Array.from({ length: rows }, async (_, row) => {
    const [best, shares] = await Promise.all(["lens.tokens", "lens.probabilities"].map((name) => trace.matrix(name, row, from - first, from - first + count)));
    const title = row === 0 ? "embedding" : `Layer ${row - 1}`;
    return h("tr", {}, h("th", { scope: "row" }, row === rows - 1 ? `${title} = output` : title), positions.map((at, i) => {
      const [start, end] = [i * best.columns, (i + 1) * best.columns];
      const likely = [...best.data.slice(start, end)].map(display);
      const sizes = [...shares.data.slice(start, end)];
      const fill = colour(sizes[0], "share", 1);
      const say = () => app.say([["after", title], [masked ? "in place of" : "next after", `${tokens[at].display} (${at})`],
        ...likely.map((token, k) => /** @type {[string, string]} */ ([token, percent(sizes[k])]))]);
      return h("td", {
        tabindex: 0, onpointerenter: say, onfocus: say, "data-value": sizes[0], "data-id": best.data[start],
        class: best.data[start] === followed(at)?.id ? "right" : false, style: { background: fill, color: ink(fill) },
        title: likely.map((token, k) => `${token}  ${percent(sizes[k])}`).join("\n"),
      }, likely[0], h("small", {}, percent(sizes[0])));
    }));
  }));
  return {
    cells: true,
    picture: [
      note(`Columns: the token that is read. Cells: the most likely ${masked ? "token in its place" : "next token"}, at temperature 1; the color is its probability.${masked ? "" : ` Outlined: it is the token that follows${positions.includes(tokens.length - 1) ? "; after the last token that is the one that was sampled" : " in the text"}.`}`),
      h("div", { class: "scroll" }, h("table", { class: "lens" },
        h("thead", {}, h("tr", {}, h("td"), positions.map((at) =>
          h("th", { scope: "col", "aria-current": at === position ? "true" : false }, h("a", { href: app.address({ query: at }), title: `${tokens[at].display} (${at})` }, tokens[at].display))))),
        h("tbody", {}, body),
        !masked && h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "follows"), positions.map((at) => h("td", {}, followed(at)?.display)))))),
      legend("share", 1, false),
      known < tokens.length || count < known
        ? note(`Positions ${from} to ${from + count - 1} of ${tokens.length}: click a token of the text to move.${known < tokens.length ? ` Computed for the last ${known} positions only, because a large vocabulary makes the lens slow.` : ""}`)
        : null,
    ],
    panel: [
      words(app, masked ? { ...TEXT, sentence: TEXT.sentence.replace("the next token", "the token in its place") } : TEXT),
      h("section", {}, h("h2", {}, "What this does not show"),
        h("p", {}, "Only the last layer was trained to be read in this way. An earlier stream may hold the answer in a form that this readout cannot see, so a wrong token does not mean that the layer knows nothing.")),
      edits(app),
    ],
  };
}
