// Draws each plot when it comes near the screen, and wires legends and choosers. Numbers come from the page alone.
(() => {
  "use strict";
  const drawings = JSON.parse(document.getElementById("drawings").textContent);
  const ink = "#1d2733", muted = "#5b6775", line = "#dfe4ea";
  const narrow = () => window.innerWidth < 640;

  const axis = (given) => ({
    gridcolor: line, zerolinecolor: line, linecolor: "#aab3bd", ticks: "outside", tickcolor: "#aab3bd", showline: true,
    separatethousands: true, exponentformat: "none", ...given,
    title: given.title ? { standoff: 10, ...given.title } : { text: "" },
  });

  // Names down the side take less width and more height on a phone.
  function narrowLabels(place, layout) {
    const labels = layout.meta.narrow_labels;
    const extra = labels.reduce((sum, label) => sum + Math.max(0, 15 * (label.split("<br>").length - 2)), 0);
    layout.yaxis = { ...layout.yaxis, ticktext: labels };
    place.style.height = `${parseInt(place.style.height, 10) + extra}px`;
  }

  function draw(place) {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const { data, layout } = drawings[Number(place.dataset.drawing)];
    if (narrow() && layout.meta) narrowLabels(place, layout);
    Plotly.newPlot(place, data, {
      ...layout,
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      showlegend: false, hovermode: "closest", dragmode: narrow() ? false : "zoom",
      margin: { l: 8, r: 24, t: 12, b: 8 }, autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13, color: ink },
      paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff",
      hoverlabel: { bgcolor: "#ffffff", bordercolor: muted, font: { color: ink }, align: "left" },
    }, {
      displayModeBar: false, // drag to zoom, double-click to zoom out
    });
    if ("ResizeObserver" in window) new ResizeObserver(() => place.offsetWidth && Plotly.Plots.resize(place)).observe(place);
  }

  for (const chooser of document.querySelectorAll(".chooser select")) {
    const choices = [...document.querySelectorAll(`[data-chooser="${chooser.id}"]`)];
    const show = () => {
      choices.forEach((choice) => { choice.hidden = choice.dataset.choice !== chooser.value; });
      choices.filter((choice) => !choice.hidden).forEach((choice) => choice.querySelectorAll(".plot").forEach(draw));
    };
    chooser.addEventListener("change", show);
    show();
  }

  // Near plots at once, the others one by one while nothing else is to do, hidden ones when they are shown.
  const places = [...document.querySelectorAll(".plot")];
  if ("IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { draw(entry.target); watcher.unobserve(entry.target); }
    }, { rootMargin: "600px" });
    places.forEach((place) => watcher.observe(place));
  }
  const visible = () => places.find((place) => place.offsetParent && !place.dataset.drawn);
  (function drawNext() {
    const place = visible();
    if (place) { draw(place); setTimeout(drawNext, 30); }
  })();
  window.addEventListener("beforeprint", () => { for (let place = visible(); place; place = visible()) draw(place); });

  for (const key of document.querySelectorAll(".key")) {
    key.addEventListener("click", () => {
      const place = key.closest("figure").querySelector(".plot");
      draw(place);
      const show = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(show));
      const traces = place.data.map((trace, index) => [trace, index])
        .filter(([trace]) => trace.legendgroup === key.dataset.series).map(([, index]) => index);
      Plotly.restyle(place, { visible: show }, traces);
    });
  }

})();
