"use strict";

const TOKEN = "buildwatch-token";
const NO_TOKEN = "This server requires its token: open the address that it printed, which ends in #token=….";

// The address that `serve` prints has the token after the `#`, which browsers do not send. This tab keeps the token and removes it
// from the address bar.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN);
}

// Calls the API, with the token if there is one: in a header, since addresses are logged, and a cookie would be sent to every port
// of this host.
function ask(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { ...options.headers, Authorization: `Bearer ${token}` } : options.headers;
  return fetch(path, { ...options, headers });
}

const EMOJI = String.raw`\p{Extended_Pictographic}\p{Emoji_Modifier}?\ufe0f?`;
const UNSEEN = String.raw`[\x00-\x08\x0b-\x1f\x7f-\x9f\p{Bidi_Control}\p{Default_Ignorable_Code_Point}\u2028\u2029\ufff9-\ufffb]`;
const SHOWN = new RegExp(`(${EMOJI}(?:\u200d${EMOJI})*)|${UNSEEN}`, "gu");

// Shows a control character as its picture (U+2400 and on). Shows a character that changes the direction of text or has no width by
// its number, except joiners within an emoji. `src/visible.rs` does the same for a terminal.
function visible(text) {
  if (/^[\x20-\x7e\t\n]*$/.test(text)) return text;
  return text.replace(SHOWN, (character, emoji) => {
    if (emoji !== undefined) return emoji;
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\\u{${code.toString(16)}}`;
  });
}

function shownCommand(build) {
  return build.command ? visible(build.command.join(" ")) : "(sealed under another key)";
}

addEventListener("hashchange", takeToken);
takeToken();
