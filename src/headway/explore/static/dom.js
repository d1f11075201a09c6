// Create elements. Strings from outside (tokens, names) are inserted as text nodes only.

/** @typedef {Node | string | number | null | undefined | false} Child */
/** @typedef {Record<string, any>} Attributes */

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";

/**
 * An HTML element. `onclick` etc. are listeners, `style` is an object, false omits an attribute.
 * @param {string} tag @param {Attributes} [attributes] @param {...(Child | Child[] | Child[][])} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/**
 * An SVG element.
 * @param {string} tag @param {Attributes} [attributes] @param {...(Child | Child[] | Child[][])} children
 * @returns {SVGElement}
 */
export function s(tag, attributes = {}, ...children) {
  return filled(/** @type {SVGElement} */ (document.createElementNS(SVG, tag)), attributes, children);
}

/**
 * A MathML element.
 * @param {string} tag @param {Attributes} [attributes] @param {...(Child | Child[] | Child[][])} children
 * @returns {MathMLElement}
 */
export function m(tag, attributes = {}, ...children) {
  return filled(/** @type {MathMLElement} */ (document.createElementNS(MATHML, tag)), attributes, children);
}

/**
 * A button.
 * @param {Child} label @param {() => void} act @param {Attributes} [attributes]
 */
export function button(label, act, attributes = {}) {
  return h("button", { type: "button", onclick: act, ...attributes }, label);
}

/**
 * @template {HTMLElement | SVGElement | MathMLElement} E
 * @param {E} element @param {Attributes} attributes @param {(Child | Child[] | Child[][])[]} children
 * @returns {E}
 */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [key, one] of Object.entries(value)) element.style.setProperty(key, String(one));
    } else if (value !== false && value != null) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(2)) {
    if (child instanceof Node) element.append(child);
    else if (child != null && child !== false) element.append(String(child));
  }
  return element;
}
