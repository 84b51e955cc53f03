// The plots of the overview, drawn by uPlot. They have the colours of the page, dark and light.
"use strict";

class Plots {
  static KINDS = [
    { title: "Calls a second", series: [["Calls", 1, "--overview-main"], ["Errors", 2, "--overview-bad"]], unit: "" },
    { title: "Duration (ms)", series: [["p50", 3, "--overview-main"], ["p95", 4, "--overview-second"], ["p99", 5, "--overview-bad"]], unit: "" },
    { title: "Open sessions", series: [["Sessions", 6, "--overview-main"]], unit: "" },
    { title: "Memory (MiB)", series: [["Memory", 7, "--overview-main"]], unit: "" },
  ];

  constructor(parent) {
    this.parent = parent;
    this.points = [];
    this.drawn = [];
    const redraw = () => this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    new ResizeObserver(() => this.resize()).observe(parent);
  }

  show(points) {
    const first = this.points.length ? this.points[0][0] : 0;
    this.points = points;
    // Another range has other axes.
    if (this.drawn.length && points.length && points[0][0] - first < 3600 && points[0][0] >= first) {
      this.drawn.forEach((plot, index) => plot.setData(this.data(Plots.KINDS[index])));
    } else {
      this.draw();
    }
  }

  data(kind) {
    const column = (index) => this.points.map((point) => point[index]);
    return [column(0), ...kind.series.map(([, index]) => column(index))];
  }

  draw() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const days = this.points.length > 1 && this.points[this.points.length - 1][0] - this.points[0][0] > 2 * 86400;
    const time = (seconds) => new Date(seconds * 1000).toISOString();
    const axis = { stroke: colour("--body-fg"), grid: { stroke: colour("--hairline-color"), width: 1 }, ticks: { show: false } };
    const width = this.width();
    this.drawn.forEach((plot) => plot.destroy());
    this.drawn = Plots.KINDS.map((kind) => new uPlot({
      title: kind.title,
      width,
      height: 180,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      cursor: { sync: { key: "overview" }, drag: { x: false, y: false } },
      scales: { y: { range: (_, least, most) => [0, Math.max(most * 1.1, 1)] } },
      axes: [
        { ...axis, space: 80, values: (_, ticks) => ticks.map((tick) => (days ? time(tick).slice(5, 10) : time(tick).slice(11, 16))) },
        { ...axis, size: 60 },
      ],
      series: [{ label: "UTC", value: "{YYYY}-{MM}-{DD} {HH}:{mm}:{ss}" }, ...kind.series.map(([label, , name]) => ({
        label,
        stroke: colour(name),
        width: 1.5,
        points: { show: false },
      }))],
    }, this.data(kind), this.parent));
  }

  width() {
    const columns = getComputedStyle(this.parent).gridTemplateColumns.split(" ");
    return Math.max(200, Math.floor(parseFloat(columns[0]) || this.parent.clientWidth));
  }

  resize() {
    const width = this.width();
    this.drawn.filter((plot) => plot.width !== width).forEach((plot) => plot.setSize({ width, height: 180 }));
  }
}
