"use strict";
// Rows are data and stay text: `el` creates elements, nothing here parses HTML. Paragraphs and items are written
// in the direction of their own text.

const BLOCK = 50; // rows per block, BLOCK_ROWS of scalecap/report/page.py
const BATCH = 8; // rows rendered at once
const MAX_CACHED = 12; // unpacked blocks

function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("--")) made.style.setProperty(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  if (["p", "li", "dt", "dd", "pre"].includes(name)) made.dir = "auto";
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// `1 row`, `1,234 rows`.
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const unpacked = new Map();

// The value of a block; the most recently used ones are cached.
function block(id) {
  const known = unpacked.get(id);
  if (known) {
    unpacked.delete(id);
    unpacked.set(id, known);
    return known;
  }
  const promise = unpack(id);
  unpacked.set(id, promise);
  if (unpacked.size > MAX_CACHED) unpacked.delete(unpacked.keys().next().value);
  return promise;
}

async function unpack(id) {
  const packed = Uint8Array.from(atob(document.getElementById(`data-${id}`).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function rowAt(number) {
  return (await block(`rows-${Math.floor(number / BLOCK)}`))[number % BLOCK];
}

async function image(number, name) {
  const cell = (await block(`images-${Math.floor(number / BLOCK)}`))[number % BLOCK];
  const shown = cell.webp
    ? el("img", { src: `data:image/webp;base64,${cell.webp}`, alt: name || `image ${number + 1}`, decoding: "async" })
    : el("p", { class: "warning" }, `No image: ${cell.none}`);
  return el("figure", {}, shown, el("figcaption", {}, `${number + 1}${name ? " · " : ""}`, el("bdi", {}, name)));
}

// All text of a row in lower case, for the search.
function textOf(value, key = "") {
  if (typeof value === "string") return ["kind", "column", "source_column"].includes(key) ? "" : `${value.toLowerCase()}\n`;
  if (Array.isArray(value)) return value.map((each) => textOf(each)).join("");
  if (value && typeof value === "object") return Object.entries(value).map(([name, each]) => textOf(each, name)).join("");
  return "";
}

// A list of rows with infinite scrolling. `index` is {tags, numbers, rows: [[tag ids], [values]]}; `textOfRow`
// returns the lower-case text that is searched.
function browse(index, render, textOfRow = textOf) {
  const list = document.getElementById("rows");
  const more = document.getElementById("more");
  const [search, tag, sort] = ["search", "tag", "sort"].map((id) => document.getElementById(id));
  const count = document.getElementById("count");
  let order = [];
  let shown = 0;
  let turn = 0;
  let growing = Promise.resolve();

  index.tags.forEach((label, id) => {
    const rows = index.rows.filter(([own]) => own.includes(id)).length;
    tag.append(el("option", { value: id }, `${label} (${rows})`));
  });
  index.numbers.forEach((name, id) => {
    sort.append(el("option", { value: `-${id}` }, `${name}, highest first`), el("option", { value: `+${id}` }, `${name}, lowest first`));
  });

  async function matching(now) {
    const words = search.value.toLowerCase().trim();
    let found = index.rows.map((_, number) => number);
    if (tag.value) found = found.filter((number) => index.rows[number][0].includes(Number(tag.value)));
    if (words) {
      const hits = [];
      for (const number of found) {
        if (textOfRow(await rowAt(number)).includes(words)) hits.push(number);
        if (now !== turn) return null;
      }
      found = hits;
    }
    if (sort.value) {
      const place = Number(sort.value.slice(1));
      const sign = sort.value[0] === "-" ? -1 : 1;
      const of = (number) => index.rows[number][1][place];
      const missing = (number) => of(number) === null || of(number) === undefined;
      found.sort((a, b) => missing(a) - missing(b) || sign * (of(a) - of(b)) || a - b);
    }
    return found;
  }

  async function refresh() {
    const now = ++turn;
    count.textContent = search.value ? "searching…" : "";
    const found = await matching(now);
    if (found === null || now !== turn) return;
    order = found;
    shown = 0;
    list.replaceChildren();
    await grow();
    if (now !== turn) return;
    const all = index.rows.length;
    count.textContent = order.length === all ? counted(all, "row") : `${order.length.toLocaleString("en")} of ${counted(all, "row")}`;
  }

  // Renders the next batch; concurrent calls are serialized.
  function grow() {
    growing = growing.then(async () => {
      const now = turn;
      const batch = order.slice(shown, shown + BATCH);
      const made = await Promise.all(batch.map((number) => render(number).catch((error) => errorCard(number, error))));
      if (now !== turn) return;
      list.append(...made);
      shown += batch.length;
      more.textContent = shown < order.length ? `${counted(order.length - shown, "more row")}…` : order.length ? "" : "No matching rows.";
      watch.unobserve(more);
      if (shown < order.length) watch.observe(more);
    });
    return growing;
  }

  const watch = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && grow(), { rootMargin: "800px" });

  async function go(step) {
    const all = [...list.children];
    let at = all.findIndex((each) => each.contains(document.activeElement));
    if (at < 0) at = all.findIndex((each) => each.getBoundingClientRect().bottom > 120) - (step > 0 ? 1 : 0);
    const wanted = Math.max(0, at + step);
    if (wanted >= list.children.length && shown < order.length) await grow();
    const target = list.children[Math.min(wanted, list.children.length - 1)];
    if (target) {
      target.scrollIntoView({ block: "start" });
      target.focus({ preventScroll: true });
    }
  }

  let waiting;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 200); });
  tag.addEventListener("change", refresh);
  sort.addEventListener("change", refresh);
  search.form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => go(-1));
  document.getElementById("next").addEventListener("click", () => go(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const keys = { j: () => go(1), k: () => go(-1), "/": () => search.focus() };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  refresh();
}

// Shown in place of a row that can't be rendered.
function errorCard(number, error) {
  return el("article", { tabindex: -1 }, el("p", { class: "warning" }, `Row ${number + 1} can't be shown: ${error}`));
}
