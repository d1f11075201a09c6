// Change a number of a matrix in its cell.

import { h } from "../../explore/static/dom.js";

/**
 * Put an input over a cell of the matrix in a slot, which must be positioned. Of several matrices
 * it is the first whose cells can be picked.
 * @param {HTMLElement} slot @param {number} at  the index of the cell @param {number} value @param {string} label
 * @param {(number: number) => void} set  called at each change @param {() => void} closed  draws the matrix again
 */
export function edit(slot, at, value, label, set, closed) {
  const cell = /** @type {Element} */ (slot.querySelectorAll(".pickable > g > rect")[at]);
  const [outer, inner] = [slot, cell].map((one) => one.getBoundingClientRect());
  const zoom = outer.width / slot.offsetWidth; // in a presentation
  let open = true;
  const close = () => {
    if (!open) return;
    open = false; // to remove it fires "blur"
    const focus = document.activeElement === field;
    field.remove();
    closed();
    if (focus) /** @type {HTMLElement | null} */ (slot.querySelector(".pickable"))?.focus();
  };
  const field = /** @type {HTMLInputElement} */ (h("input", {
    type: "number", step: 0.1, value, class: "cell", "aria-label": label,
    style: { left: `${(inner.left - outer.left) / zoom}px`, top: `${(inner.top - outer.top) / zoom}px` },
    oninput: () => {
      if (field.value && Number.isFinite(Number(field.value))) set(Number(field.value));
    },
    onblur: close,
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") close();
    },
  }));
  slot.append(field);
  field.select();
}
