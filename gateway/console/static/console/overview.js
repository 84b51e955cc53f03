// Keeps the overview up to date from server-sent events. Everything is set as text, so a name from a client stays a name.
"use strict";

{
  const overview = document.getElementById("overview");
  const plots = new Plots(document.getElementById("overview-plots"));
  const late = document.getElementById("overview-late");
  const connection = document.getElementById("overview-connection");
  const ranges = document.getElementById("overview-ranges");
  const SILENT_MS = 10000;
  let range = "hour";
  let points = [];
  let lastEvent = Date.now();

  function setText(element, text) {
    if (element.textContent !== text) {
      element.textContent = text;
    }
  }

  function showFigures(figures) {
    const values = document.querySelectorAll("#overview-figures dd");
    figures.forEach((figure, index) => setText(values[index], figure.value));
  }

  function showRow(row, shown, columns) {
    shown.className = row.level;
    row.cells.forEach((text, index) => {
      let cell = shown.cells[index];
      if (!cell) {
        cell = document.createElement(index ? "td" : "th");
        if (!index) {
          cell.scope = "row";
        }
        shown.append(cell);
      }
      if (columns[index].is_number) {
        cell.className = "number";
      }
      if (index || !row.href) {
        setText(cell, text);
        return;
      }
      let link = cell.querySelector("a");
      if (!link) {
        link = document.createElement("a");
        cell.replaceChildren(link);
      }
      if (link.getAttribute("href") !== row.href) {
        link.setAttribute("href", row.href);
      }
      setText(link, text);
    });
  }

  function showTable(table) {
    const section = document.getElementById("overview-" + table.id);
    const shown = section.querySelector("table");
    const body = shown.tBodies[0];
    table.rows.forEach((row, index) => showRow(row, body.rows[index] || body.insertRow(), table.columns));
    while (body.rows.length > table.rows.length) {
      body.deleteRow(-1);
    }
    setText(section.querySelector(".overview-note"), table.note);
    shown.hidden = !table.rows.length;
    section.querySelector(".overview-nothing").hidden = Boolean(table.rows.length);
  }

  function showPoints() {
    plots.show(points);
    const body = document.getElementById("overview-points").tBodies[0];
    const step = Math.max(1, Math.floor(points.length / 12));
    const rows = points.slice().reverse().filter((_, index) => index % step === 0);
    body.replaceChildren(...rows.map(([at, ...figures]) => {
      const row = document.createElement("tr");
      const time = new Date(at * 1000).toISOString();
      const text = range === "hour" ? time.slice(11, 19) : time.slice(5, 16).replace("T", " ");
      for (const cell of [text, ...figures.map((figure) => (figure === null ? "-" : String(figure)))]) {
        row.insertCell().textContent = cell;
      }
      return row;
    }));
  }

  function show(snapshot) {
    lastEvent = Date.now();
    setText(connection, "Live.");
    const state = document.getElementById("overview-state");
    state.className = "overview-state state-" + snapshot.state.level;
    setText(state, snapshot.state.text);
    setText(document.getElementById("overview-of"), snapshot.of);
    showFigures(snapshot.figures);
    snapshot.tables.forEach(showTable);
    const newest = points.length ? points[points.length - 1][0] : 0;
    if (range === "hour" && snapshot.point && snapshot.point[0] > newest) {
      points.push(snapshot.point);
      points = points.slice(-360);
      showPoints();
    }
  }

  function showLate(text) {
    setText(late, text ? "The history is late: " + text + "." : "");
  }

  async function load(wanted) {
    range = wanted;
    for (const button of ranges.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.range === wanted));
    }
    let answer;
    try {
      const response = await fetch(overview.dataset.history.replace("hour", wanted), { headers: { Accept: "application/json" } });
      answer = response.headers.get("Content-Type").startsWith("application/json")
        ? await response.json()
        : { error: "The history cannot be read now (" + response.status + ")." };
    } catch {
      answer = { error: "The history cannot be read now." };
    }
    if (wanted !== range) {
      return;
    }
    if (answer.error) {
      setText(late, answer.error);
      points = [];
    } else {
      showLate(answer.late);
      points = answer.points;
    }
    showPoints();
  }

  function connect() {
    const events = new EventSource(new URL(overview.dataset.live, location.href));
    events.addEventListener("snapshot", (event) => show(JSON.parse(event.data)));
    events.addEventListener("error", () => {
      // A browser tries again by itself, unless it was refused.
      setText(connection, events.readyState === EventSource.CLOSED
        ? "Not live: you are logged out, may not watch, or too many people do. Load the page again."
        : "The connection was lost. Trying again.");
    });
    addEventListener("pagehide", () => events.close());
    setInterval(() => {
      if (events.readyState === EventSource.OPEN && Date.now() - lastEvent > SILENT_MS) {
        setText(connection, "Nothing has come for " + Math.round((Date.now() - lastEvent) / 1000) + " s.");
      }
    }, 1000);
  }

  ranges.hidden = false;
  ranges.addEventListener("click", (event) => {
    if (event.target.dataset.range) {
      load(event.target.dataset.range);
    }
  });
  setInterval(() => range !== "hour" && load(range), 60000);
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  load("hour");
  connect();
}
