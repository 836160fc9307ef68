"use strict";
// The status page: fetches /api/v1/status every two seconds and shows it. Values are only ever inserted as text.

const colour = {
  ready: "good", completed: "good", released: "good", finished: "good",
  rolling_out: "busy", running: "busy", starting: "busy", registered: "busy",
  rejected: "bad", rolled_back: "bad", failed: "bad", lost: "bad", interrupted: "bad", alarm: "bad",
};

function element(name, text, cls) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  if (cls) made.className = cls;
  return made;
}

function moment(text) { return text ? text.replace("T", " ").slice(0, 16) : "–"; }
function short(value) { return value === null || value === undefined ? "–" : Number(value).toPrecision(3); }

function table(id, columns, rows, empty) {
  const container = document.getElementById(id);
  if (!rows.length) { container.replaceChildren(element("p", empty, "empty")); return; }
  const made = element("table");
  const head = made.createTHead().insertRow();
  for (const column of columns) head.append(element("th", column));
  const body = made.createTBody();
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((value, index) => {
      const kind = colour[value] || (/^\d{4}-\d\d-\d\d/.test(value ?? "") ? "moment" : index === row.length - 1 ? "text" : "");
      line.append(element("td", value ?? "–", kind));
    });
  }
  container.replaceChildren(made);
}

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart(id, findings, alarms) {
  const container = document.getElementById(id);
  const points = findings.filter((finding) => finding.value !== null);
  if (points.length < 2) { container.replaceChildren(element("p", "The chart needs labels of at least two windows.", "empty")); return; }
  const width = 640, height = 180, left = 44, bottom = 22;
  const times = points.map((point) => Date.parse(point.window_to));
  const low = Math.min(...points.map((point) => point.evidence.low ?? point.value));
  const high = Math.max(...points.map((point) => point.evidence.high ?? point.value));
  const spread = high - low || 1;
  const x = (time) => left + ((time - times[0]) / (times[times.length - 1] - times[0] || 1)) * (width - left - 12);
  const y = (value) => 8 + (1 - (value - low) / spread) * (height - bottom - 16);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "live metric by window" });
  for (const value of [low, (low + high) / 2, high]) {
    drawing.append(svg("line", { class: "axis", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
    drawing.append(svg("text", { x: 2, y: y(value) + 4 }, value.toFixed(3)));
  }
  const upper = points.map((point, i) => `${x(times[i])},${y(point.evidence.high ?? point.value)}`);
  const lower = points.map((point, i) => `${x(times[i])},${y(point.evidence.low ?? point.value)}`).reverse();
  drawing.append(svg("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
  drawing.append(svg("polyline", { class: "line", points: points.map((point, i) => `${x(times[i])},${y(point.value)}`).join(" ") }));
  const alarmed = new Set(alarms.map((alarm) => alarm.window_to));
  points.forEach((point, i) => {
    const dot = svg("circle", { class: alarmed.has(point.window_to) ? "alarm" : "dot", cx: x(times[i]), cy: y(point.value), r: 3 });
    dot.append(svg("title", {}, `${moment(point.window_from)} to ${moment(point.window_to)}: ${point.message}`));
    drawing.append(dot);
  });
  drawing.append(svg("text", { x: left, y: height - 4 }, moment(points[0].window_from).slice(0, 10)));
  drawing.append(svg("text", { x: width - 12, y: height - 4, "text-anchor": "end" }, moment(points[points.length - 1].window_to).slice(0, 10)));
  container.replaceChildren(drawing);
}

function lastReason(release) { return release.decisions.length ? release.decisions[release.decisions.length - 1].reason : ""; }

function draw(status) {
  document.getElementById("where").textContent =
    `${status.project} · ${moment(status.now)} UTC${status.simulated ? " (simulated clock)" : ""}`;
  table("endpoints", ["endpoint", "state", "address", "routes"], status.endpoints.map((e) => [
    e.name, e.state, `${location.origin}/endpoints/${e.name}/predict`, e.routes.map((r) => `${r.version} ${r.percent}% ${r.role}`).join(", ")]),
    "No endpoints yet: everloop run releases the first version.");
  chart("performance", status.performance, status.performance_alarms);
  table("releases", ["candidate", "previous", "state", "traffic", "started", "reason"], status.releases.map((r) => [
    r.candidate, r.previous, r.state, `${r.percent}%`, moment(r.created_at), lastReason(r)]), "No releases yet.");
  table("incidents", ["since", "severity", "state", "endpoint", "kind", "what"], status.incidents.map((i) => [
    moment(i.began_at), i.severity, i.state, i.endpoint, i.kind, `${i.title} ${i.message}`]), "No incidents.");
  table("versions", ["version", "state", "snapshot", "metrics", "dropped columns"], status.versions.map((v) => [
    `${v.model}@${v.version}`, v.state, v.snapshot,
    Object.entries(v.metrics).map(([name, value]) => `${name} ${short(value)}`).join("  "),
    (v.evaluation.left_out ?? []).map((one) => `${one.column}: ${one.reason}`).join("; ") || null]), "No versions yet.");
  table("runs", ["run", "state", "trigger", "started", "seconds"], status.runs.map((r) => [
    r.name, r.state, r.trigger, moment(r.started_at), short(r.seconds)]), "No runs yet.");
  table("events", ["#", "time", "actor", "event"], status.events.map((e) => [
    String(e.seq), moment(e.at), e.actor, `${e.verb} ${e.kind} ${e.key}${e.data.reason ? ": " + e.data.reason : ""}`]), "No events yet.");
}

async function refresh() {
  try {
    const response = await fetch("/api/v1/status", { cache: "no-store" });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    draw(await response.json());
  } catch (error) {
    document.getElementById("where").textContent = `The server does not answer (${error.message}); trying again.`;
  }
  setTimeout(refresh, 2000);
}

refresh();
