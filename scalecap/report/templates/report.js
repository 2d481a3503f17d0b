
const percent = (p) => p.toFixed(2);

// A checked text: coloured by its probability or, word by word, by what the picture adds to it.
function scored(text) {
  const marks = { class: `${"p" in text ? "scored" : "kept" in text ? "verdict" : ""}${text.kept === false ? " dropped" : ""}` };
  if ("p" in text) marks["--p"] = text.p;
  const inner = text.tokens ? rated(text.text, text.tokens) : text.clauses ? clauses(text.clauses) : [text.text];
  const shown = el(text.kept === false ? "del" : "span", marks, ...inner);
  const instead = text.instead ? [el("del", { class: "verdict dropped" }, text.instead), " → "] : [];
  const note = text.kept === false
    ? el("small", { class: "why" }, ` dropped: ${text.why}`)
    : "p" in text ? el("small", {}, ` ${percent(text.p)}`, el("span", { class: "hidden" }, " probability of yes, kept")) : null;
  return [...instead, shown, note];
}

// Tokens in the colours of their gaps; what lies between them stays.
function rated(text, tokens) {
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

const part = {
  text: (each) => [el("p", {}, each.text)],
  scored: (each) => [el("ul", { class: "texts" }, ...each.texts.map((text) => el("li", {}, ...scored(text))))],
  drafts: (each) => [
    el("details", { open: each.texts.length <= 4 },
      el("summary", {}, `${each.texts.length} drafts`),
      el("ol", { class: "drafts" }, ...each.texts.map((draft) => el("li", draft.taken ? { class: "taken" } : {}, draft.text,
        typeof draft.score === "number" ? el("small", {}, ` ${percent(draft.score)}`) : null,
        draft.taken ? el("small", {}, " taken") : null)))),
  ],
  // Cut out of the row's own thumbnail, which is scaled so that the part fills its frame.
  regions: (each, shown) => {
    const source = shown.querySelector("img");
    return [el("p", { class: "regions" }, ...each.regions.map((region, at) => {
      if (!region || !source) return el("small", {}, region ? `${at + 1}: ${region.box.join(", ")} ` : `${at + 1}: none `);
      const [left, top, right, bottom] = region.box;
      const [width, height] = [right - left, bottom - top];
      const alt = `part ${at + 1}: ${region.box.join(", ")} of ${region.of.join(" by ")} pixels`;
      return el("span", { class: "region", title: alt, "--ratio": width / height, "--wide": region.of[0] / width, "--left": left / width, "--top": top / height },
        el("img", { src: source.src, alt }));
    }))];
  },
  answers: (each) => [
    el("details", { open: each.pairs.length <= 8 },
      el("summary", {}, `${each.pairs.length} questions, ${each.pairs.filter(([, answer]) => answer.kept !== false).length} answers kept`),
      el("dl", { class: "answers" }, ...each.pairs.flatMap(([question, answer]) => [el("dt", {}, question), el("dd", {}, ...scored(answer))]))),
  ],
  final: (each) => {
    const columns = [...new Set(each.texts.map((text) => text.from).filter(Boolean))];
    const texts = each.texts.map((text) => {
      if (!text.from) return el("span", { class: "from none", title: "in none of the checked texts" }, text.text);
      const origin = `from ${text.kept ? "" : "what was dropped at "}${text.from}`;
      return el("span", { class: `from origin-${columns.indexOf(text.from) % 5}${text.kept ? "" : " again"}`, title: `${origin}: ${text.source}` },
        text.text, el("span", { class: "hidden" }, ` (${origin}) `));
    });
    const known = columns.map((column, at) => el("span", { class: `from origin-${at % 5}` }, `from ${column}`));
    if (each.texts.some((text) => text.from && !text.kept)) known.push(el("span", { class: "from again" }, "was dropped before"));
    if (each.texts.some((text) => !text.from)) known.push(el("span", { class: "from none" }, "from no single text"));
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
  const rest = row.rest.length
    ? el("details", {}, el("summary", {}, "Other columns"), ...row.rest.flatMap(([column, text]) => [el("h3", {}, column), el("pre", {}, text)]))
    : null;
  const shown = await picture(number, row.name);
  const parts = row.parts.flatMap((each) => [el("h3", {}, each.column.replaceAll("_", " ")), ...part[each.is](each, shown)]);
  return el("article", { tabindex: -1, "aria-label": `Row ${number + 1}${row.name ? `, ${row.name}` : ""}` },
    el("div", {}, shown, facts, ...flags),
    el("div", {}, error, ...parts, rest));
}

block("calibration").then((steps) => steps.forEach((points, at) =>
  chart(document.getElementById(`calibration-${at}`), () => ({ points, across: "P(yes)", up: "share true", square: true }))));
block("index").then((index) => browse(index, card));
