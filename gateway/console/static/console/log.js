// Shows the log lines of a server, and those that come, as long as the page can be seen.
"use strict";

for (const log of document.querySelectorAll(".log[data-url]")) {
  const MAX_LINES = 500;
  const EVERY_MS = 2000;
  let process = "";
  let last = 0;

  const show = (line) => {
    const element = document.createElement("div");
    element.className = "log-line log-" + line.level.toLowerCase();
    element.textContent = `${line.at} ${line.level} ${line.logger}: ${line.text}`;
    log.append(element);
  };

  const say = (text) => {
    log.querySelector(".log-none")?.remove();
    if (text && !log.childElementCount) {
      const element = document.createElement("div");
      element.className = "log-none";
      element.textContent = text;
      log.append(element);
    }
  };

  const poll = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(`${log.dataset.url}?process=${encodeURIComponent(process)}&after=${last}`);
        if (!answer.ok) {
          throw new Error(String(answer.status));
        }
        const lines = await answer.json();
        const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
        if (lines.process !== process) {
          log.replaceChildren();
        }
        process = lines.process;
        say("");
        lines.lines.forEach(show);
        last = lines.last;
        while (log.childElementCount > MAX_LINES) {
          log.firstElementChild.remove();
        }
        say(`Nothing has been logged since process ${process} started.`);
        if (isAtEnd) {
          log.scrollTop = log.scrollHeight;
        }
      } catch {
        say("The log lines cannot be read now.");
      }
    }
    setTimeout(poll, EVERY_MS);
  };
  poll();
}
