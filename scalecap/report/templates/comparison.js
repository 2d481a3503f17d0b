
const marked = { 0: (text) => text, 1: (text) => el("ins", {}, text), "-1": (text) => el("del", {}, text) };

async function compared(number) {
  const row = await rowAt(number);
  const caption = (job) => {
    if (!job.segments) return el("p", { class: "warning" }, job.why || "no caption");
    if (job.same) return el("p", { class: "about" }, "the baseline's caption, word for word");
    return el("p", {}, ...job.segments.map(([sign, text]) => marked[sign](text)));
  };
  const jobs = row.jobs.map((job) =>
    el("section", {}, el("h3", {}, `job ${job.job}`), caption(job),
      job.numbers.length ? el("dl", { class: "measured" }, ...job.numbers.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])) : null));
  return el("article", { tabindex: -1, "aria-label": `Row ${number + 1}${row.name ? `, ${row.name}` : ""}` },
    el("div", {}, await picture(number, row.name)), el("div", { class: "jobs" }, ...jobs));
}

// Quality against cost: a point for each job with its interval and name.
function plot(data) {
  const [quality, cost] = ["quality", "cost"].map((id) => document.getElementById(id));
  const names = Object.keys(data.numbers);
  if (!names.length) {
    document.getElementById("chart-section").remove();
    return;
  }
  names.forEach((name) => quality.append(el("option", {}, name)));
  Object.keys(data.costs).forEach((name) => cost.append(el("option", {}, name)));
  const place = document.getElementById("chart");
  let drawn;

  function draw() {
    const all = data.jobs
      .map((job, at) => ({ job, x: data.costs[cost.value][at], y: data.numbers[quality.value][at] }))
      .filter((point) => point.x !== null && point.y !== null)
      .sort((a, b) => a.x - b.x);
    // Jobs at one point share it.
    const points = [];
    for (const point of all) {
      const there = points.find((each) => each.x === point.x && String(each.y) === String(point.y));
      if (there) there.job += `, ${point.job}`;
      else points.push(point);
    }
    const style = getComputedStyle(document.documentElement);
    const [ink, line, mark] = ["--ink", "--line", "--link"].map((name) => style.getPropertyValue(name).trim());
    const spread = (values) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const room = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
      return [low - room, high + room];
    };
    const axis = (label, size) => ({ label, stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, size, font: "12px system-ui", labelFont: "bold 12px system-ui" });
    const ratio = window.devicePixelRatio || 1;

    function intervals(chart) {
      const context = chart.ctx;
      context.save();
      context.lineWidth = 1.5 * ratio;
      context.textAlign = "left";
      context.font = `${12 * ratio}px system-ui`;
      for (const point of points) {
        const x = chart.valToPos(point.x, "x", true);
        const [y, low, high] = point.y.map((value) => chart.valToPos(value, "y", true));
        context.strokeStyle = mark;
        context.beginPath();
        context.moveTo(x, low);
        context.lineTo(x, high);
        for (const end of [low, high]) {
          context.moveTo(x - 4 * ratio, end);
          context.lineTo(x + 4 * ratio, end);
        }
        context.stroke();
        context.fillStyle = ink;
        context.fillText(point.job, x + 9 * ratio, y - 7 * ratio);
      }
      context.restore();
    }

    if (drawn) drawn.destroy();
    drawn = new uPlot({
      width: place.clientWidth,
      height: Math.min(380, Math.max(260, place.clientWidth * 0.5)),
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { time: false, range: () => spread(points.map((point) => point.x)) },
        y: { range: () => spread(points.flatMap((point) => point.y)) },
      },
      axes: [axis(cost.value, 44), axis(quality.value, 64)],
      series: [{}, { paths: () => null, points: { show: true, size: 9, fill: mark, stroke: mark } }],
      hooks: { draw: [intervals] },
    }, [points.map((point) => point.x), points.map((point) => point.y[0])], place);
  }

  quality.addEventListener("change", draw);
  cost.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) {
      width = place.clientWidth;
      draw();
    }
  }).observe(place);
}

block("chart").then(plot);
block("index").then((index) => browse(index, compared).refresh());
