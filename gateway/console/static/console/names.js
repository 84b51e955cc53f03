// Gives names to parts of Django's admin that have none which a screen reader could read out.
"use strict";

const textOf = (element) => (element ? element.textContent.trim().replace(/:$/, "") : "");

const nameParts = () => {
  document.getElementById("searchbar")?.setAttribute("aria-label", "Search");
  for (const input of document.querySelectorAll(".vDateField, .vTimeField")) {
    const whole = textOf(input.closest(".form-row, .fieldBox")?.querySelector("legend, label, .flex-container > label"));
    input.setAttribute("aria-label", `${whole}: ${input.matches(".vDateField") ? "date" : "time"}`);
  }
  for (const tip of document.querySelectorAll("span.help-tooltip[aria-label]")) {
    tip.setAttribute("role", "img");
  }
  for (const select of document.querySelectorAll("select.admin-autocomplete")) {
    const label = document.querySelector(`label[for="${CSS.escape(select.id)}"]`);
    for (const part of select.nextElementSibling?.querySelectorAll('[role="combobox"], [role="textbox"]') ?? []) {
      part.setAttribute("aria-label", textOf(label) || select.name);
    }
  }
};

// Django makes some parts when its jQuery is ready, which may be after the window has loaded.
window.addEventListener("load", () => (window.django?.jQuery ? window.django.jQuery(nameParts) : nameParts()));
