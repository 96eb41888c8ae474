"use strict";

const STRATEGIES = ["inline", "spawn", "cpu_pool", "batch", "drop"];
const HISTORY_S = 120, POLL_MS = 1000, PATIENCE_MS = 5000, ROWS = 30;
const SCALE = { from: 1e-3, decades: 7 }; // of latencies: 1 us to 10 s, in ms
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// -- Numbers as text ----------------------------------------------------------------------------

const digits = (value) =>
  new Intl.NumberFormat("en", { maximumSignificantDigits: 3 }).format(value);

function asDuration(ms) {
  if (ms === null) return "–";
  if (ms >= 1000) return `${digits(ms / 1000)} s`;
  return ms >= 1 || ms === 0 ? `${digits(ms)} ms` : `${digits(ms * 1000)} us`;
}

const AS = {
  ms: asDuration,
  us: (us) => asDuration(us / 1000),
  number: (value) => (value === null ? "–" : digits(value)),
  whole: (value) => whole.format(value),
};

function show(element, value, as = "whole") {
  element.textContent = AS[as](value);
  element.dataset.value = JSON.stringify(value); // exactly as it came
}

// -- The state of the router, and of the connection ----------------------------------------------

function showState(state, text) {
  byId("state").dataset.state = state;
  byId("state").textContent = text;
  document.body.classList.toggle("stale", state === "lost");
}

const STATES = {
  new: "not opened yet", opening: "opening", open: "open", closing: "closing: takes no more jobs",
  closed: "closed", crashed: "crashed: takes no more jobs",
};

async function poll() {
  try {
    const response = await fetch("api/stats", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`${response.status}`);
    const stats = await response.json();
    showState(stats.state, STATES[stats.state] ?? stats.state);
    showStats(stats);
  } catch (error) {
    if (byId("state").dataset.state !== "lost") {
      const time = new Date().toLocaleTimeString("en-GB");
      showState("lost", `no answer since ${time}; the numbers are from before`);
    }
  } finally {
    setTimeout(poll, POLL_MS);
  }
}

// -- Stats ----------------------------------------------------------------------------------------

let limits = {};

function showStats(stats) {
  for (const element of document.querySelectorAll("[data-stat]")) {
    const value = element.dataset.stat.split(".").reduce((part, name) => part[name], stats);
    show(element, value, element.dataset.as);
  }
  showBar("backlog-bar", stats.waiting, stats.queue_capacity);
  showBar("slots-bar", stats.cpu_busy, stats.cpu_parallelism);
  showBar("lag-bar", stats.loop_lag_ms, limits.max_loop_lag_ms ?? 20);
  byId("shadow").hidden = !stats.shadow_compared;
  for (const name of STRATEGIES) showStrip(name, stats.by_strategy[name].latency);
  showDrops(stats.dropped_by_reason);
  remember(stats);
}

function showBar(id, value, most) {
  const bar = byId(id);
  bar.max = Math.max(most, 1e-9);
  bar.value = Math.min(value, most);
  bar.classList.toggle("high", value >= 0.9 * most && id !== "slots-bar");
}

function makeLatencies() {
  for (const name of STRATEGIES) {
    if (name === "drop") continue; // whose jobs don't complete
    const path = `by_strategy.${name}.latency`;
    const cell = (field, as) => make("td", { "data-stat": `${path}.${field}`, "data-as": as });
    const strip = draw("svg", { class: `strip ${name}`, id: `strip-${name}`, "aria-hidden": "true" });
    byId("latencies").append(
      make("tr", {},
        make("th", { scope: "row" }, make("span", { class: `key ${name}` }), name),
        cell("count", "whole"), cell("p50_ms", "ms"), cell("p95_ms", "ms"), cell("p99_ms", "ms"),
        make("td", { class: "scale" }, strip)));
  }
}

function showStrip(name, latency) {
  const strip = byId(`strip-${name}`);
  if (!strip) return;
  const track = draw("line", { class: "track", x1: "0", x2: "100%", y1: 7, y2: 7 });
  strip.replaceChildren(track);
  if (latency.p50_ms === null) return;
  const at = (ms) => {
    const share = Math.log10(Math.max(ms, SCALE.from) / SCALE.from) / SCALE.decades;
    return `${(Math.min(share, 1) * 100).toFixed(2)}%`;
  };
  strip.append(
    draw("line", { class: "range", x1: at(latency.p50_ms), x2: at(latency.p99_ms), y1: 7, y2: 7 }),
    ...[latency.p50_ms, latency.p95_ms, latency.p99_ms].map((ms) =>
      draw("circle", { class: "mark", cx: at(ms), cy: 7, r: 4 })));
}

function showDrops(reasons) {
  const sorted = Object.entries(reasons).sort((one, other) => other[1] - one[1]);
  byId("no-drops").hidden = sorted.length > 0;
  byId("reasons").replaceChildren(...sorted.map(([reason, jobs]) => {
    const count = make("b", { "data-reason": reason });
    show(count, jobs);
    const share = make("progress", { "aria-label": `share of ${reason}` });
    share.max = sorted[0][1];
    share.value = jobs;
    return make("li", {}, make("span", {}, reason), count, share);
  }));
}

// -- Jobs per second ------------------------------------------------------------------------------

let samples = []; // of time and of the jobs that ended on each strategy so far

function remember(stats) {
  const routed = STRATEGIES.map((name) => stats.by_strategy[name].routed);
  const last = samples.at(-1);
  if (last && (stats.time_s < last.at_s || routed.some((jobs, i) => jobs < last.routed[i]))) {
    samples = []; // another router, or the same one started anew
  }
  if (last && stats.time_s === last.at_s) return; // an answer made for several
  samples.push({ at_s: stats.time_s, routed });
  samples = samples.filter((sample) => sample.at_s >= stats.time_s - HISTORY_S - 5);
  const rates = ratesAt(samples.length - 1);
  STRATEGIES.forEach((name, i) => {
    document.querySelector(`[data-rate="${name}"]`).textContent = rates ? asRate(rates[i]) : "–";
  });
  const all = rates?.reduce((sum, rate) => sum + rate, 0);
  document.querySelector('[data-rate="all"]').textContent = rates ? asRate(all) : "–";
  drawChart();
}

function ratesAt(i) {
  if (i < 1) return null;
  const [before, now] = [samples[i - 1], samples[i]];
  return now.routed.map((jobs, k) => (jobs - before.routed[k]) / (now.at_s - before.at_s));
}

const asRate = (rate) => (rate < 9.95 ? rate.toFixed(rate ? 1 : 0) : whole.format(Math.round(rate)));

function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 4, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function drawChart() {
  const chart = byId("chart");
  const { clientWidth: width, clientHeight: height } = chart;
  const left = 48, top = 8, bottom = 20, right = 4;
  const points = samples.map((sample, i) => ({ at_s: sample.at_s, rates: ratesAt(i) })).slice(1);
  const now_s = samples.at(-1)?.at_s ?? 0;
  const sums = points.map((point) => point.rates.reduce((sum, rate) => sum + rate, 0));
  const most = niceCeiling(Math.max(...sums, 10));
  const x = (at_s) => left + (1 - (now_s - at_s) / HISTORY_S) * (width - left - right);
  const y = (rate) => top + (1 - rate / most) * (height - top - bottom);
  const parts = [];
  for (let step = 0; step <= 4; step++) {
    const rate = (most * step) / 4;
    parts.push(draw("line", { x1: left, x2: width - right, y1: y(rate), y2: y(rate) }));
    const label = draw("text", { x: left - 6, y: y(rate) + 4, "text-anchor": "end" });
    label.textContent = whole.format(rate);
    parts.push(label);
  }
  for (const ago of width > 480 ? [120, 90, 60, 30, 0] : [120, 60, 0]) {
    const anchor = { 120: "start", 0: "end" }[ago] ?? "middle";
    const label = draw("text", { x: x(now_s - ago), y: height - 4, "text-anchor": anchor });
    label.textContent = ago ? `${ago} s ago` : "now";
    parts.push(label);
  }
  const shown = points.filter((point) => point.at_s >= now_s - HISTORY_S);
  if (shown.length > 1) {
    const below = shown.map(() => 0);
    STRATEGIES.forEach((name, k) => {
      const lower = shown.map((point, i) => `${x(point.at_s).toFixed(1)},${y(below[i]).toFixed(1)}`);
      shown.forEach((point, i) => { below[i] += point.rates[k]; });
      const upper = shown.map((point, i) => `${x(point.at_s).toFixed(1)},${y(below[i]).toFixed(1)}`);
      parts.push(draw("path", { class: name, d: `M${upper.join("L")}L${lower.reverse().join("L")}Z` }));
    });
  }
  chart.replaceChildren(...parts);
}

function makeLegend() {
  for (const name of STRATEGIES) {
    byId("legend").append(
      make("li", {}, make("span", { class: `key ${name}` }), `${name} `, make("b", { "data-rate": name }, "–")));
  }
}

// -- Decisions ------------------------------------------------------------------------------------

let records = [], seen = 0, received = 0, paused = false;
let clock_ms = Infinity; // what to add to the router's clock for the time of day, at the least delay

function follow() {
  const events = new EventSource("api/decisions");
  events.onmessage = (event) => {
    const news = JSON.parse(event.data);
    const last = records[0]?.number ?? -1;
    if (news.seen <= last) { records = []; seen = received = 0; } // another router
    const fresh = news.records.filter((record) => record.number > last || !records.length);
    if (!fresh.length) return;
    if (!received) seen = fresh[0].number; // what was before isn't missed
    clock_ms = Math.min(clock_ms, Date.now() - fresh.at(-1).at_ns / 1e6);
    received += fresh.length;
    records = [...fresh.reverse(), ...records].slice(0, ROWS);
    if (!paused) showRecords(news.seen);
  };
}

function showRecords(total) {
  const missed = total - seen - received;
  const lost = missed > 0 ? `; ${whole.format(missed)} more came too fast to be shown` : "";
  byId("shown").textContent = `the latest ${records.length}${lost}`;
  byId("records").replaceChildren(...records.map(rowOf));
}

function rowOf(record) {
  const time = new Date(clock_ms + record.at_ns / 1e6);
  const text = time.toLocaleTimeString("en-GB") + `.${String(time.getMilliseconds()).padStart(3, "0")}`;
  const budget = record.latency_budget_ms;
  const moved = record.decided !== null && record.decided !== record.strategy;
  const late = budget !== null && record.latency_ms > budget && record.status === "completed";
  const cell = (text, kind = "") => make("td", { class: kind, title: text }, text);
  return make("tr", { "data-number": record.number },
    cell(text),
    cell(record.job_id === null ? `${whole.format(record.jobs)} jobs` : record.job_id),
    cell(record.kind),
    make("td", {}, make("span", { class: `key ${record.strategy}` }),
      moved ? `${record.decided} → ${record.strategy}` : record.strategy),
    cell(record.reason),
    cell(record.status, record.status),
    cell(asDuration(record.latency_ms), late ? "late" : ""),
    cell(budget === null ? "" : asDuration(budget)));
}

// -- Settings -------------------------------------------------------------------------------------

let settings = {};

async function readSettings() {
  try {
    const response = await fetch("api/config", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`${response.status}`);
    takeSettings(await response.json());
  } catch {
    setTimeout(readSettings, PATIENCE_MS);
  }
}

function takeSettings({ config, allow_reconfigure }) {
  settings = limits = config;
  byId("lag-limit").textContent = asDuration(config.max_loop_lag_ms);
  byId("change").hidden = !allow_reconfigure;
  byId("fields").replaceChildren(...Object.entries(config).map(([name, value]) =>
    make("label", {}, name, allow_reconfigure ? inputOf(name, value) : readOnly(name, value))));
}

function readOnly(name, value) {
  return make("output", { "data-setting": name }, value === null ? "none" : String(value));
}

function inputOf(name, value) {
  let input;
  if (typeof value === "boolean") {
    input = make("select", {}, make("option", {}, "true"), make("option", {}, "false"));
    input.value = String(value);
  } else {
    input = make("input", { type: "text", placeholder: "none", autocomplete: "off" });
    input.value = value === null ? "" : String(value);
  }
  input.name = name;
  input.dataset.setting = name;
  input.addEventListener("input", () => input.classList.toggle("changed", isChanged(input)));
  return input;
}

function isChanged(input) {
  return JSON.stringify(valueOf(input)) !== JSON.stringify(settings[input.name]);
}

function valueOf(input) {
  const text = input.value.trim();
  if (typeof settings[input.name] === "boolean") return text === "true";
  if (text === "") return null;
  const number = Number(text);
  return Number.isFinite(number) ? number : text; // the router says what is wrong with it
}

async function change(event) {
  event.preventDefault();
  const inputs = [...byId("fields").querySelectorAll("[name]")].filter(isChanged);
  if (!inputs.length) return answer("nothing was changed", true);
  const changes = Object.fromEntries(inputs.map((input) => [input.name, valueOf(input)]));
  try {
    const response = await fetch("api/config", {
      method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify(changes),
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const content = await response.json();
    if (!response.ok) return answer(content.error, false);
    takeSettings(content);
    answer(`changed ${Object.keys(changes).join(", ")}`, true);
  } catch (error) {
    answer(`no answer: ${error.message}`, false);
  }
}

function answer(text, good) {
  byId("answer").textContent = text;
  byId("answer").classList.toggle("good", good);
}

// -- Start ----------------------------------------------------------------------------------------

makeLegend();
makeLatencies();
byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "go on" : "pause";
});
byId("form").addEventListener("submit", change);
new ResizeObserver(drawChart).observe(byId("chart"));
readSettings();
poll();
follow();
