// Ticking a server chooses "only these servers", and ticking a tool chooses "only these tools" of a server that is ticked.
"use strict";

document.addEventListener("change", (event) => {
  const input = event.target;
  const scope = input.closest(".scope");
  if (!scope || input.type !== "checkbox" || !input.checked) {
    return;
  }
  scope.querySelector(':scope > label > input[type="radio"][value="some"]').checked = true;
  const details = input.closest("details");
  if (details) {
    details.querySelector('input[type="radio"][value="some"]').checked = true;
    details.closest(".scope-server").querySelector('label > input[type="checkbox"]').checked = true;
  }
});

// Django's field for choosing a user has no name that a screen reader could read out.
// Django makes that field when its jQuery is ready, which may be after the window has loaded.
window.addEventListener("load", () => window.django.jQuery(() => {
  for (const select of document.querySelectorAll("select.admin-autocomplete")) {
    const label = document.querySelector(`label[for="${select.id}"]`);
    const field = select.nextElementSibling;
    for (const part of field ? field.querySelectorAll('[role="combobox"], [role="textbox"]') : []) {
      part.setAttribute("aria-label", label ? label.textContent.trim() : select.name);
    }
  }
}));
