// Returns a function that plots points {x, y: [mean, low, high], label} with their intervals by uPlot.
// `content` returns {points, xLabel, yLabel}, and `square` for two axes from 0 to 1 and their diagonal.
function chart(place, content) {
  const axis = (label, size, ink, line) => ({
    label, size, stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 },
    font: "12px system-ui", labelFont: "bold 12px system-ui",
  });
  const padded = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
    // No negative ticks where no value is negative; a point at 0 is still drawn whole.
    return [Math.max(low - margin, low < 0 ? -Infinity : -0.03 * (high + margin)), high + margin];
  };
  const ratio = window.devicePixelRatio || 1;
  let drawn;

  function draw() {
    const { points, xLabel, yLabel, square } = content();
    const style = getComputedStyle(document.documentElement);
    const [ink, line, mark] = ["--ink", "--line", "--link"].map((name) => style.getPropertyValue(name).trim());

    function intervals(plot) {
      const context = plot.ctx;
      const path = (...corners) => {
        context.beginPath();
        corners.forEach(([x, y], at) => context[at ? "lineTo" : "moveTo"](plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)));
        context.stroke();
      };
      context.save();
      context.lineWidth = 1.5 * ratio;
      context.font = `${12 * ratio}px system-ui`;
      context.strokeStyle = line;
      if (square) path([0, 0], [1, 1]);
      context.strokeStyle = mark;
      context.fillStyle = ink;
      for (const { x, y: [value, low, high], label } of points) {
        const tick = plot.posToVal(4, "x") - plot.posToVal(0, "x");
        path([x, low], [x, high]);
        for (const end of [low, high]) path([x - tick, end], [x + tick, end]);
        // To the right of the point; to the left where the plot ends before the label.
        const [at, gap] = [plot.valToPos(x, "x", true), 9 * ratio];
        const fits = at + gap + context.measureText(label).width <= plot.ctx.canvas.width;
        context.textAlign = fits ? "left" : "right";
        context.fillText(label, at + (fits ? gap : -gap), plot.valToPos(value, "y", true) - 7 * ratio);
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
        x: { time: false, range: () => (square ? [0, 1.06] : padded(points.map((point) => point.x))) },
        y: { range: () => (square ? [-0.04, 1.04] : padded(points.flatMap((point) => point.y))) },
      },
      axes: [axis(xLabel, 44, ink, line), axis(yLabel, 64, ink, line)],
      series: [{}, { paths: () => null, points: { show: true, size: 9, fill: mark, stroke: mark } }],
      hooks: { draw: [intervals] },
    }, [points.map((point) => point.x), points.map((point) => point.y[0])], place);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (place.clientWidth !== width) {
      width = place.clientWidth;
      draw();
    }
  }).observe(place);
  return draw;
}
