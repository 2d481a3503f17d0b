
// The labelling mode: statements one by one, verdicts by key or button, kept in the browser's own storage.
const VERDICTS = { y: "yes", n: "no", "?": "unsure" };

function labelling(drawn) {
  const by = (id) => document.getElementById(`label-${id}`);
  const [open, section, choice, author] = [by("open"), document.getElementById("label"), by("step"), by("author")];
  const buttons = [...section.querySelectorAll("[data-verdict]")];
  let step = drawn.steps[0];
  let turn = 0;
  let shown = null; // the statement on the screen beside its picture, the only one that can be decided about

  drawn.steps.forEach((each, number) => choice.append(el("option", { value: number }, each.step.replaceAll("_", " "))));

  const key = (each) => `scalecap labels ${each.run} ${each.step} ${drawn.draw}`;
  const read = (name, otherwise) => {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  };
  const held = new Map(); // verdicts of this visit, should the browser keep nothing
  const verdictsOf = (each) => held.get(key(each)) ?? read(key(each), {});
  const name = ([, row, text]) => JSON.stringify([row, text]);

  function keep(storageKey, value) {
    try {
      localStorage.setItem(storageKey, JSON.stringify(value));
    } catch {
      by("warning").textContent = "This browser keeps nothing for this page: download the labels before you leave it.";
    }
  }

  const waiting = () => {
    const verdicts = verdictsOf(step);
    return step.statements.find((each) => !(name(each) in verdicts));
  };

  async function show() {
    const now = ++turn;
    shown = null;
    const statement = waiting();
    const figure = statement ? await picture(statement[0], "") : "";
    if (statement) await figure.querySelector("img")?.decode().catch(() => {});
    if (now !== turn) return;
    shown = statement;
    const verdicts = verdictsOf(step);
    const done = step.statements.filter((each) => name(each) in verdicts);
    const count = (wanted) => done.filter((each) => verdicts[name(each)].verdict === wanted).length;
    by("count").textContent = `${done.length} of ${step.statements.length} labelled: ${count("yes")} yes, ${count("no")} no, ${count("unsure")} unsure`;
    by("progress").max = Math.min(step.statements.length, 100 * Math.floor(done.length / 100 + 1));
    by("progress").value = done.length;
    for (const each of buttons) each.disabled = !statement;
    by("undo").disabled = !done.length;
    by("text").textContent = statement ? statement[2] : "All statements that were drawn are labelled.";
    by("picture").replaceChildren(figure);
  }

  function decide(verdict) {
    if (!shown) return;
    const verdicts = verdictsOf(step);
    verdicts[name(shown)] = { verdict, time: new Date().toISOString(), author: author.value.trim() };
    held.set(key(step), verdicts);
    keep(key(step), verdicts);
    show();
  }

  function undo() {
    const verdicts = verdictsOf(step);
    const last = step.statements.filter((each) => name(each) in verdicts)
      .reduce((a, b) => (a && verdicts[name(a)].time > verdicts[name(b)].time ? a : b), null);
    if (!last) return;
    delete verdicts[name(last)];
    held.set(key(step), verdicts);
    keep(key(step), verdicts);
    show();
  }

  function download() {
    const lines = drawn.steps.flatMap((each) => {
      const verdicts = verdictsOf(each);
      return each.statements.filter((statement) => name(statement) in verdicts).map((statement) => {
        const { verdict, author: by_whom, time } = verdicts[name(statement)];
        const [, row_id, text] = statement;
        return JSON.stringify({ row_id, step: each.step, text, verdict, author: by_whom, time, run: each.run, draw: drawn.draw });
      });
    });
    const url = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
    el("a", { href: url, download: "labels.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function enter(inside) {
    document.body.classList.toggle("labelling", inside);
    section.hidden = !inside;
    if (inside) show();
    (inside ? by("title") : open).focus();
  }

  author.value = read("scalecap author", "");
  author.addEventListener("change", () => keep("scalecap author", author.value.trim()));
  choice.addEventListener("change", () => { step = drawn.steps[Number(choice.value)]; show(); });
  section.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); by("title").focus(); });
  for (const each of buttons) each.addEventListener("click", () => decide(each.dataset.verdict));
  by("undo").addEventListener("click", undo);
  by("download").addEventListener("click", download);
  by("close").addEventListener("click", () => enter(false));
  open.addEventListener("click", () => enter(true));
  // Before the page's own keys, which walk through rows that are hidden now.
  window.addEventListener("keydown", (event) => {
    if (section.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === author && event.key !== "Escape") return;
    event.stopPropagation();
    const verdict = VERDICTS[event.key.toLowerCase()];
    if (event.repeat && event.key !== "Escape") return;
    if (verdict) decide(verdict);
    else if (event.key === "u") undo();
    else if (event.key === "Escape") enter(false);
    else return;
    event.preventDefault();
  }, true);
}

block("draw").then((drawn) => drawn.steps.length && labelling(drawn));
