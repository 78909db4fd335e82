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

  function draw(place) {
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const { data, layout } = drawings[Number(place.dataset.drawing)];
    Plotly.newPlot(place, data, {
      ...layout,
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      showlegend: false, hovermode: "closest", dragmode: narrow() ? false : "zoom",
      margin: { l: 8, r: 24, t: 12, b: 8 }, autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13, color: ink },
      paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff",
      hoverlabel: { bgcolor: "#ffffff", bordercolor: muted, font: { color: ink }, align: "left" },
    }, {
      responsive: true, displayModeBar: false, // drag to zoom, double-click to zoom out
    });
  }

  const places = [...document.querySelectorAll(".plot")];
  if ("IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { draw(entry.target); watcher.unobserve(entry.target); }
    }, { rootMargin: "600px" });
    places.forEach((place) => watcher.observe(place));
  } else {
    places.forEach(draw);
  }
  window.addEventListener("beforeprint", () => places.filter((place) => place.offsetParent).forEach(draw));

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

  for (const chooser of document.querySelectorAll(".chooser select")) {
    const choices = [...document.querySelectorAll(`[data-chooser="${chooser.id}"]`)];
    const show = () => choices.forEach((choice) => { choice.hidden = choice.dataset.choice !== chooser.value; });
    chooser.addEventListener("change", show);
    show();
  }
})();
