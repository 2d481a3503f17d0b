
const percent = (p) => p.toFixed(2);

// A checked text, coloured by its probability or by the contrastive gap of each word.
function scored(text) {
  const marks = { class: `${"p" in text ? "scored" : "kept" in text ? "verdict" : ""}${text.kept === false ? " dropped" : ""}` };
  if ("p" in text) marks["--p"] = text.p;
  const inner = text.tokens ? byToken(text.text, text.tokens) : text.clauses ? clauses(text.clauses) : [text.text || "(empty)"];
  const shown = el(text.kept === false ? "del" : "span", marks, ...inner);
  const repaired = text.replaces ? [el("del", { class: "verdict dropped" }, text.replaces), " → "] : [];
  const note = text.kept === false
    ? el("small", { class: "why" }, ` dropped: ${text.reason}`)
    : "p" in text ? el("small", {}, ` ${percent(text.p)}`, el("span", { class: "hidden" }, " probability of yes, kept")) : null;
  return [...repaired, shown, note];
}

// Colours tokens by their gaps; the text between them is kept.
function byToken(text, tokens) {
  const widest = Math.max(0.01, ...tokens.map((token) => Math.abs(token.gap ?? 0)));
  const parts = [];
  let at = 0;
  for (const token of tokens) {
    const word = token.text.trim();
    const begin = word ? text.indexOf(word, at) : -1;
    if (begin < 0) continue;
    parts.push(text.slice(at, begin));
    const known = typeof token.gap === "number";
    parts.push(el("span", known ? { class: "scored", "--p": 0.5 + token.gap / widest / 2, title: `gap ${token.gap.toFixed(2)}` } : {}, word));
    at = begin + word.length;
  }
  return [...parts, text.slice(at)];
}

function clauses(all) {
  return all.flatMap((clause) => [
    el(clause.kept === false ? "del" : "span", { title: typeof clause.gap === "number" ? `gap ${clause.gap.toFixed(2)}` : null }, clause.text),
    " ",
  ]);
}

// Elements of a section, by its kind.
const sections = {
  text: (each) => [el("p", {}, each.text)],
  scored: (each) => [el("ul", { class: "texts" }, ...each.texts.map((text) => el("li", {}, ...scored(text))))],
  drafts: (each) => [
    el("details", { open: each.texts.length <= 4 },
      el("summary", {}, counted(each.texts.length, "draft")),
      el("ol", { class: "drafts" }, ...each.texts.map((draft) => el("li", draft.taken ? { class: "taken" } : {}, draft.text,
        typeof draft.score === "number" ? el("small", {}, ` ${percent(draft.score)}`) : null,
        draft.taken ? el("small", {}, " taken") : null)))),
  ],
  // Regions are cropped from the thumbnail by CSS, scaled to fill their frames.
  regions: (each, figure) => {
    const source = figure.querySelector("img");
    return [el("p", { class: "regions" }, ...each.regions.map((region, at) => {
      if (!region || !source) return el("small", {}, region ? `${at + 1}: ${region.box.join(", ")} ` : `${at + 1}: none `);
      const [left, top, right, bottom] = region.box;
      const [width, height] = [right - left, bottom - top];
      const alt = `region ${at + 1}: ${region.box.join(", ")} of ${region.of.join(" by ")} pixels`;
      return el("span", { class: "region", title: alt, "--ratio": width / height, "--wide": region.of[0] / width, "--left": left / width, "--top": top / height },
        el("img", { src: source.src, alt }));
    }))];
  },
  answers: (each) => [
    el("details", { open: each.pairs.length <= 8 },
      el("summary", {}, counted(each.pairs.length, "question"),
        each.pairs.some(([, answer]) => "kept" in answer) ? `, ${counted(each.pairs.filter(([, answer]) => answer.kept).length, "answer")} kept` : null),
      el("dl", { class: "answers" }, ...each.pairs.flatMap(([question, answer]) => [el("dt", {}, question), el("dd", {}, ...scored(answer))]))),
  ],
  final: (each) => {
    const columns = [...new Set(each.texts.map((text) => text.source_column).filter(Boolean))];
    const texts = each.texts.map((text) => {
      if (!text.source_column) return el("span", { class: "from none", title: "matches none of the checked texts" }, text.text);
      const origin = `from ${text.kept ? "" : "a text dropped at "}${text.source_column}`;
      return el("span", { class: `from origin-${columns.indexOf(text.source_column) % 5}${text.kept ? "" : " again"}`, title: `${origin}: ${text.source}` },
        text.text, el("span", { class: "hidden" }, ` (${origin}) `));
    });
    const known = columns.map((column, at) => el("span", { class: `from origin-${at % 5}` }, `from ${column}`));
    if (each.texts.some((text) => text.source_column && !text.kept)) known.push(el("span", { class: "from again" }, "from a dropped text"));
    if (each.texts.some((text) => !text.source_column)) known.push(el("span", { class: "from none" }, "from no single text"));
    return [el("p", { class: "final" }, ...texts), el("p", { class: "origins" }, ...known)];
  },
};

async function card(number) {
  const row = await rowAt(number);
  const facts = row.numbers.length
    ? el("dl", { class: "measured" }, ...row.numbers.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]))
    : null;
  const flags = Object.entries(row.flags).flatMap(([step, marks]) => marks.map((mark) => el("span", { class: "flag" }, `${step}: ${mark}`)));
  const error = row.error
    ? el("p", { class: "warning" }, `Failed at ${row.error.step || "row"} (${row.error.kind}): ${row.error.message}`)
    : null;
  const rest = row.other.length
    ? el("details", {}, el("summary", {}, "Other columns"), ...row.other.flatMap(([column, text]) => [el("h3", {}, column), el("pre", {}, text)]))
    : null;
  const figure = await image(number, row.name);
  const shown = (each) => [each.text, each.texts, each.pairs, each.regions].some((value) => value?.length)
    ? sections[each.kind](each, figure) : [el("p", { class: "about" }, "(empty)")];
  const parts = row.sections.flatMap((each) => [el("h3", {}, each.column.replaceAll("_", " ")), ...shown(each)]);
  return el("article", { tabindex: -1, "aria-label": `Row ${number + 1}${row.name ? `, ${row.name}` : ""}` },
    el("div", {}, figure, facts, ...flags),
    el("div", {}, error, ...parts, rest));
}

block("calibration").then((steps) => steps.forEach((points, at) =>
  chart(document.getElementById(`calibration-${at}`), () => ({ points, xLabel: "P(yes)", yLabel: "share true", square: true }))));
block("index").then((index) => browse(index, card));
