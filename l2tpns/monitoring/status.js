// Asks for this page again and puts the parts of the new one in place of the old: each ten seconds, and while typing.
"use strict";
const form = document.getElementById("search");
const input = form.elements.q;
const state = document.getElementById("state");
const ALL = ["clock", "now", "graphs", "tables", "sessions"];
let latest = 0; // number of the newest question: an older one's answer comes too late

async function refresh(parts) {
  const number = ++latest;
  try {
    const response = await fetch(location.search || "?", { signal: AbortSignal.timeout(15000) });
    if (!response.ok) throw new Error(response.status);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (number !== latest) return;
    for (const id of parts) document.getElementById(id).replaceWith(page.getElementById(id));
    state.textContent = "";
  } catch {
    if (number === latest) state.textContent = "· the server does not answer, what you see is old";
  }
}

function look(search) {
  history.replaceState(null, "", search || location.pathname);
  return refresh(["sessions"]);
}

let typing;
input.addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => look(input.value.trim() && "?" + new URLSearchParams({ q: input.value.trim() })), 250);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  look(input.value.trim() && "?" + new URLSearchParams({ q: input.value.trim() }));
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("#sessions a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  look(link.search);
});
setInterval(() => { if (!document.hidden && !document.querySelector(".tip")) refresh(ALL); }, 10000);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(ALL); });

// A graph under the pointer: a cursor, and what the lines say there.
function short(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (value >= size) return Number((value / size).toPrecision(3)) + letter;
  return String(Number(value.toPrecision(3)));
}

function leave() {
  for (const old of document.querySelectorAll(".tip, .cursor")) old.remove();
}

document.addEventListener("pointermove", (event) => {
  leave();
  const svg = event.target.closest && event.target.closest("svg[data-max]");
  if (!svg) return;
  const [left, right, top, bottom, max, seconds] =
    ["left", "right", "top", "bottom", "max", "seconds"].map((name) => Number(svg.dataset[name]));
  const box = svg.getBoundingClientRect();
  const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
  const values = [];
  let place = null;
  for (const line of svg.querySelectorAll("polyline")) {
    for (const point of line.points) {
      const distance = Math.abs(point.x - at);
      const known = values[line.dataset.line];
      if (distance < 6 && (!known || distance < known.distance)) {
        values[line.dataset.line] = { distance, value: (bottom - point.y) / (bottom - top) * max };
        place = point.x;
      }
    }
  }
  if (place === null) return;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  for (const [name, value] of [["x1", place], ["x2", place], ["y1", top], ["y2", bottom]]) cursor.setAttribute(name, value);
  svg.append(cursor);
  const ago = Math.round((right - place) / (right - left) * seconds);
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.textContent = (ago < 60 ? ago + " s" : Math.round(ago / 60) + " min") + " ago: " +
    values.map((known) => known ? short(known.value) : "–").join(" / ");
  svg.parentNode.append(tip);
});
document.addEventListener("pointerleave", leave);
