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
