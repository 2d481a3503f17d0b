
// Labelling mode: one statement at a time, verdicts by key or button, saved in localStorage.
const VERDICTS = { y: "yes", n: "no", "?": "unsure" };

function labelling(drawn) {
  const by = (id) => document.getElementById(`label-${id}`);
  const [open, section, choice, author] = [by("open"), document.getElementById("label"), by("step"), by("author")];
  const buttons = [...section.querySelectorAll("[data-verdict]")];
  let step = drawn.steps[0];
  let turn = 0;
  let shown = null; // the statement on screen whose image is loaded; only it can be labelled

  drawn.steps.forEach((each, number) => choice.append(el("option", { value: number }, each.step.replaceAll("_", " "))));

  const key = (each) => `scalecap labels ${each.run} ${each.step} ${drawn.draw}`;
  const read = (name, otherwise) => {
    try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
  };
  const memory = new Map(); // verdicts of this visit, in case localStorage is unavailable
  const verdictsOf = (each) => memory.get(key(each)) ?? read(key(each), {});
  const name = ([, row, text]) => JSON.stringify([row, text]);

  function store(storageKey, value) {
    try {
      localStorage.setItem(storageKey, JSON.stringify(value));
    } catch {
      by("warning").textContent = "This browser can't save labels: download the labels before you leave the page.";
    }
  }

  const nextStatement = () => {
    const verdicts = verdictsOf(step);
    return step.statements.find((each) => !(name(each) in verdicts));
  };

  async function show() {
    const now = ++turn;
    shown = null;
    const statement = nextStatement();
    const figure = statement ? await image(statement[0], "") : "";
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
    by("text").textContent = statement ? statement[2] : "All statements in the sample are labelled.";
    by("image").replaceChildren(figure);
  }

  function label(verdict) {
    if (!shown) return;
    const verdicts = verdictsOf(step);
    verdicts[name(shown)] = { verdict, time: new Date().toISOString(), author: author.value.trim() };
    memory.set(key(step), verdicts);
    store(key(step), verdicts);
    show();
  }

  function undo() {
    const verdicts = verdictsOf(step);
    const last = step.statements.filter((each) => name(each) in verdicts)
      .reduce((a, b) => (a && verdicts[name(a)].time > verdicts[name(b)].time ? a : b), null);
    if (!last) return;
    delete verdicts[name(last)];
    memory.set(key(step), verdicts);
    store(key(step), verdicts);
    show();
  }

  function download() {
    const lines = drawn.steps.flatMap((each) => {
      const verdicts = verdictsOf(each);
      return each.statements.filter((statement) => name(statement) in verdicts).map((statement) => {
        const { verdict, author, time } = verdicts[name(statement)];
        const [, row_id, text] = statement;
        return JSON.stringify({ row_id, step: each.step, text, verdict, author, time, run: each.run, draw: drawn.draw });
      });
    });
    const url = URL.createObjectURL(new Blob(lines.map((line) => `${line}\n`), { type: "application/jsonl" }));
    el("a", { href: url, download: "labels.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function toggle(inside) {
    document.body.classList.toggle("labelling", inside);
    section.hidden = !inside;
    if (inside) show();
    (inside ? by("title") : open).focus();
  }

  author.value = read("scalecap author", "");
  author.addEventListener("change", () => store("scalecap author", author.value.trim()));
  choice.addEventListener("change", () => { step = drawn.steps[Number(choice.value)]; show(); });
  section.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); by("title").focus(); });
  for (const each of buttons) each.addEventListener("click", () => label(each.dataset.verdict));
  by("undo").addEventListener("click", undo);
  by("download").addEventListener("click", download);
  by("close").addEventListener("click", () => toggle(false));
  open.addEventListener("click", () => toggle(true));
  // Captured before the page's own shortcuts, which move through the hidden rows.
  window.addEventListener("keydown", (event) => {
    if (section.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === author && event.key !== "Escape") return;
    event.stopPropagation();
    const verdict = VERDICTS[event.key.toLowerCase()];
    if (event.repeat && event.key !== "Escape") return;
    if (verdict) label(verdict);
    else if (event.key === "u") undo();
    else if (event.key === "Escape") toggle(false);
    else return;
    event.preventDefault();
  }, true);
}

block("draw").then((drawn) => drawn.steps.length && labelling(drawn));
