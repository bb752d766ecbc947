"use strict";
document.documentElement.classList.add("js");

// Videos: one button stops and starts all; those who want less motion begin with still ones.
(() => {
  const videos = [...document.querySelectorAll("video")];
  const button = document.getElementById("motion");
  if (!videos.length) return;
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const seen = new Set();
  const apply = () => {
    // Phones decode few videos at once: only those on the screen play.
    for (const video of videos) playing && seen.has(video) ? video.play().catch(() => {}) : video.pause();
    button.textContent = playing ? "Pause videos" : "Play videos";
  };
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? seen.add(entry.target) : seen.delete(entry.target);
    apply();
  });
  button.hidden = false;
  button.addEventListener("click", () => { playing = !playing; apply(); });
  for (const video of videos) {
    watch.observe(video);
    video.style.backgroundImage = `url("${video.poster}")`;  // never an empty box
    video.addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  }
  apply();
})();

// Only one sound at a time.
document.addEventListener("play", (event) => {
  if (!(event.target instanceof HTMLAudioElement)) return;
  for (const sound of document.querySelectorAll("audio")) if (sound !== event.target) sound.pause();
}, true);

// Sliders: of all places on a component one is shown.
for (const slider of document.querySelectorAll(".slider")) {
  const frames = [...slider.querySelectorAll(".frame")];
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  const show = () => {
    frames.forEach((frame, place) => frame.classList.toggle("on", place === Number(input.value)));
    output.textContent = frames[Number(input.value)].dataset.title;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.value = slider.dataset.start;
  input.addEventListener("input", show);
  show();
}

// Legends: a line that is switched off is off in all charts of the section.
for (const box of document.querySelectorAll(".legend input")) {
  box.addEventListener("change", () => {
    const charts = box.closest("section").querySelectorAll(".chart .line");
    for (const line of charts) if (line.dataset.name === box.dataset.name) line.classList.toggle("off", !box.checked);
  });
}

// Charts: the point nearest to the pointer is read off; arrow keys go from step to step.
const SVG = "http://www.w3.org/2000/svg";
const make = (parent, name, attributes) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return parent.appendChild(node);
};
const short = (value) => String(Number(value.toPrecision(3)));

for (const chart of document.querySelectorAll(".chart")) {
  const [left, top, right, bottom] = chart.dataset.plot.split(" ").map(Number);
  const scale = (key, share) => {
    const [low, high, log] = chart.dataset[key].split(" ").map(Number);
    return log ? low * (high / low) ** share : low + share * (high - low);
  };
  let mark = null, last = null;
  const points = () => {
    const found = [];
    for (const line of chart.querySelectorAll(".line:not(.off)")) {
      for (const pair of line.getAttribute("points").split(" ")) {
        const [x, y] = pair.split(",").map(Number);
        found.push({ x, y, name: line.dataset.name });
      }
    }
    return found;
  };
  const clear = () => { mark?.remove(); mark = null; };
  const show = (point) => {
    clear();
    if (!point) return;
    last = point;
    mark = make(chart, "g", { "pointer-events": "none" });
    make(mark, "line", { class: "cross", x1: point.x, x2: point.x, y1: top, y2: bottom });
    make(mark, "circle", { class: "dot", cx: point.x, cy: point.y, r: 3 });
    const x = scale("x", (point.x - left) / (right - left));
    const y = scale("y", (bottom - point.y) / (bottom - top));
    const onLeft = point.x > (left + right) / 2;
    const text = make(mark, "text", {
      class: "readout", x: onLeft ? left + 4 : right - 2, y: top + 9, "text-anchor": onLeft ? "start" : "end",
    });
    text.textContent = `${point.name} ${short(y)} at ${short(x)}`;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const zoom = 320 / box.width;
    const x = (event.clientX - box.left) * zoom, y = (event.clientY - box.top) * zoom;
    let best = null, least = Infinity;
    for (const point of points()) {
      // Across counts more: first the step, then the nearest of its lines.
      const distance = 4 * Math.abs(point.x - x) + Math.abs(point.y - y);
      if (distance < least) { least = distance; best = point; }
    }
    show(best);
  });
  chart.addEventListener("pointerleave", clear);
  chart.addEventListener("blur", clear);
  chart.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    const all = points();
    const line = all.filter((point) => !last || point.name === last.name);
    const own = (line.length ? line : all).sort((a, b) => a.x - b.x);
    const place = last ? own.findIndex((point) => point.x === last.x) : -1;
    show(own[Math.min(Math.max(place + way, 0), own.length - 1)]);
  });
}
