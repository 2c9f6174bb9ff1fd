"use strict";
// The data that the page carries, and how texts and numbers are shown.

const byId = (id) => document.getElementById(id);

/** The JSON value of one of the page's data elements. */
async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const blocks = new Map();

/** The tokens of a file of samples, unpacked when they are first asked for. */
function block(number) {
  if (!blocks.has(number)) blocks.set(number, unpack(`block-${number}`));
  return blocks.get(number);
}

/** An element with attributes and children. Strings become text: nothing that a model wrote is ever read as markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text with what cannot be seen, or turns the direction of writing, in signs that can be seen. */
function visible(text) {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

/** A text on one line of at most so many characters. */
function excerpt(text, most = 200) {
  const line = text.length > most ? `${text.slice(0, most)}\u2026` : text;
  return visible(line.replace(/[\n\t ]+/g, " "));
}

/** A number to four digits; what is not there as a dash. */
function shown(value) {
  if (value === null || value === undefined) return "\u2013";
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value);
}

/** The bounds that "7", "5-20", "5-" or "-20" ask for; null for anything else. */
function bounds(text) {
  const match = /^\s*(\d*)\s*(-?)\s*(\d*)\s*$/.exec(text);
  if (!match || !(match[1] || match[3])) return null;
  const low = match[1] ? Number(match[1]) : -Infinity;
  return [low, match[2] ? (match[3] ? Number(match[3]) : Infinity) : low];
}
