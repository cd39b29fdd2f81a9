// Keeps the end of the conversation in view, unless the reader has scrolled away from it.

/// Distance from the end, in pixels, that still counts as being there.
const NEAR = 60;

const page = document.scrollingElement;
const button = document.getElementById("to-end");
let following = true;
let lastTop = 0;

function isNearEnd() {
  return page.scrollHeight - page.scrollTop - page.clientHeight < NEAR;
}

/// Shows the end if the reader is there; to be called after the page has grown.
export function follow() {
  if (following) page.scrollTop = page.scrollHeight;
  button.hidden = following || isNearEnd();
}

/// Goes to the end and stays there.
export function toEnd() {
  following = true;
  follow();
}

addEventListener("scroll", () => {
  // Growth of the page moves nothing, so going up is always the reader's doing.
  if (page.scrollTop < lastTop - 1 && !isNearEnd()) following = false;
  else if (isNearEnd()) following = true;
  lastTop = page.scrollTop;
  button.hidden = following;
  document.body.classList.toggle("scrolled", page.scrollTop > 4);
}, { passive: true });

button.addEventListener("click", () => {
  toEnd();
  document.getElementById("prompt").focus();
});
