"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const views = {};
  window.report = { views, errors: [] };
  const ROWS_AT_ONCE = 200;

  // --- pictures: drawn again when the reader's system goes from light to dark

  async function draw(name) {
    const spec = { ...data[name][dark.matches ? "dark" : "light"], datasets: data.datasets };
    try {
      const drawn = await vegaEmbed("#" + name, spec, {
        actions: false, renderer: "canvas", tooltip: { theme: dark.matches ? "dark" : "light" },
      });
      if (views[name]) views[name].finalize();
      views[name] = drawn.view;
    } catch (error) {
      window.report.errors.push(String(error));
      document.getElementById(name).textContent = "This picture could not be drawn: " + error;
    }
  }
  async function drawAll() {
    await draw("timeline");
    await draw("shares");
    window.report.drawn = dark.matches ? "dark" : "light";
  }
  dark.addEventListener("change", drawAll);

  // --- tables: rows are made as they come into sight, so that thousands cost nothing

  function table(element, columns, rows, empty) {
    const head = element.createTHead().insertRow();
    const body = element.createTBody();
    let shown = rows, made = 0;
    columns.forEach((column, number) => {
      const th = document.createElement("th");
      const button = document.createElement("button");
      th.scope = "col";
      if (column.number) th.className = "number";
      button.type = "button";
      button.textContent = column.title;
      button.addEventListener("click", () => sortBy(number));
      th.setAttribute("aria-sort", "none");
      th.append(button);
      head.append(th);
    });
    function makeMore(most) {
      const part = document.createDocumentFragment();
      const until = Math.min(shown.length, made + most);
      for (; made < until; made++) {
        const tr = document.createElement("tr");
        columns.forEach((column, number) => {
          const td = document.createElement("td");
          const cell = shown[made][number];
          td.textContent = cell[0]; // never as HTML
          td.className = column.state ? cell[0].split(" ")[0] : column.kind || "";
          if (column.number) td.className = "number";
          tr.append(td);
        });
        part.append(tr);
      }
      body.append(part);
    }
    function restart() {
      body.replaceChildren();
      made = 0;
      makeMore(ROWS_AT_ONCE);
    }
    function sortBy(number) {
      const th = head.children[number];
      const down = th.getAttribute("aria-sort") === "ascending";
      for (const other of head.children) other.setAttribute("aria-sort", "none");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const order = (a, b) => {
        const x = a[number][1], y = b[number][1];
        if (x === null || y === null) return (x === null) - (y === null); // unknown comes last
        return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
      };
      rows.sort(order);
      if (shown !== rows) shown.sort(order);
      restart();
    }
    function search(text) {
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      const has = (row) => {
        const all = row.map((cell) => cell[0]).join("\n").toLowerCase();
        return words.every((word) => all.includes(word));
      };
      shown = words.length ? rows.filter(has) : rows;
      restart();
      return shown.length;
    }
    const sentinel = document.createElement("div");
    element.after(sentinel);
    new IntersectionObserver((seen) => {
      if (seen.some((entry) => entry.isIntersecting)) makeMore(ROWS_AT_ONCE);
    }, { rootMargin: "600px" }).observe(sentinel);
    addEventListener("beforeprint", () => makeMore(shown.length));
    restart();
    return search;
  }

  const jobs = data.jobs.rows;
  const search = table(document.getElementById("jobs"), data.jobs.columns, jobs);
  const count = document.getElementById("count");
  const field = document.getElementById("search");
  function look() {
    const found = search(field.value);
    const all = jobs.length.toLocaleString("en");
    count.textContent = field.value.trim() ? found.toLocaleString("en") + " of " + all : all + " jobs";
  }
  field.addEventListener("input", look);
  look();
  if (data.shapes.rows.length) {
    table(document.getElementById("shapes"), data.shapes.columns, data.shapes.rows);
  } else {
    document.getElementById("shape-section").remove();
  }
  drawAll();
})();
