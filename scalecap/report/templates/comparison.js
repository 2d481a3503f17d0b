
// Elements of a piece of text that both captions have (0), or one alone (1, -1).
const pieces = { 0: (text) => text, 1: (text) => el("ins", {}, text), "-1": (text) => el("del", {}, text) };

async function card(number) {
  const row = await rowAt(number);
  const caption = (job) => {
    if (!job.segments) return el("p", { class: "warning" }, job.reason || "no caption");
    if (job.same) return el("p", { class: "about" }, "same as the baseline's caption");
    if (!job.segments.length) return el("p", { class: "about" }, "(empty)");
    return el("p", {}, ...job.segments.map(([sign, text]) => pieces[sign](text)));
  };
  const jobs = row.jobs.map((job) =>
    el("section", {}, el("h3", {}, `job ${job.job}`), caption(job),
      job.numbers.length ? el("dl", { class: "measured" }, ...job.numbers.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])) : null));
  return el("article", { tabindex: -1, "aria-label": `Row ${number + 1}${row.name ? `, ${row.name}` : ""}` },
    el("div", {}, await image(number, row.name)), el("div", { class: "jobs" }, ...jobs));
}

// Plots quality against cost: a labelled point with an interval for each job.
function plot(data) {
  const [quality, cost] = ["quality", "cost"].map((id) => document.getElementById(id));
  const names = Object.keys(data.numbers);
  if (!names.length) {
    document.getElementById("chart-section").remove();
    return;
  }
  names.forEach((name) => quality.append(el("option", {}, name)));
  Object.keys(data.costs).forEach((name) => cost.append(el("option", {}, name)));

  // Jobs with equal values share one point.
  function content() {
    const points = [];
    data.jobs.forEach((label, at) => {
      const [x, y] = [data.costs[cost.value][at], data.numbers[quality.value][at]];
      if (x === null || y === null) return;
      const there = points.find((each) => each.x === x && String(each.y) === String(y));
      if (there) there.label += `, ${label}`;
      else points.push({ x, y, label });
    });
    return { points: points.sort((a, b) => a.x - b.x), xLabel: cost.value, yLabel: quality.value };
  }

  const draw = chart(document.getElementById("chart"), content);
  quality.addEventListener("change", draw);
  cost.addEventListener("change", draw);
}

block("chart").then(plot);
// The full captions of all jobs, joined from their pieces.
function captionsOf(row) {
  const captions = row.jobs.map((job) => (job.segments || []).filter(([sign]) => sign >= 0).map(([, text]) => text).join(""));
  return [row.name, ...captions].join("\n").toLowerCase();
}

block("index").then((index) => browse(index, card, captionsOf));
