"use strict";

// The page keeps this many lines and characters, since browsers get slow with more.
const MOST_LINES = 20000;
const MOST_CHARACTERS = 8000000;
// Lines that arrive within this many milliseconds are drawn together.
const GATHER = 30;
// The longest pause before a reconnection, in milliseconds.
const LONGEST_PAUSE = 5000;

const id = location.pathname.split("/")[2];
const log = document.getElementById("log");
const connection = document.getElementById("connection");
const status = document.getElementById("status");

let last = 0;        // the number of the last event that was shown
let lastId = "";     // its id as the server sent it, to resume with
let pause = 500;
let gathered = [];   // pieces that are not drawn yet
let blocks = [];     // drawn elements, oldest first, with their numbers of lines
let lines = 0;
let characters = 0;
let cut = 0;

const decoder = new TextDecoder();

function text(data) {
  if (data.base64 === undefined) return data.text;
  return decoder.decode(Uint8Array.from(atob(data.base64), (character) => character.charCodeAt(0)));
}

function draw() {
  const pieces = gathered;
  gathered = [];
  const follow = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  let at = 0;
  while (at < pieces.length) {
    // Neighbours of the same stream become one element.
    const kind = pieces[at].kind;
    let all = "";
    let count = 0;
    for (; at < pieces.length && pieces[at].kind === kind && count < 1000 && all.length < 1000000; at++) {
      all += pieces[at].line;
      count += pieces[at].newline ? 1 : 0;
    }
    const block = document.createElement("span");
    block.className = kind;
    block.textContent = all;
    log.append(block);
    blocks.push({ block, count });
    lines += count;
    characters += all.length;
  }
  while ((lines > MOST_LINES || characters > MOST_CHARACTERS) && blocks.length > 1) {
    const oldest = blocks.shift();
    lines -= oldest.count;
    characters -= oldest.block.textContent.length;
    cut += oldest.count;
    oldest.block.remove();
  }
  if (cut > 0) {
    const note = document.getElementById("cut");
    note.hidden = false;
    note.textContent = `${cut} earlier lines are not shown; buildwatch watch ${id} prints them all.`;
  }
  if (follow) log.scrollTop = log.scrollHeight;
}

// Whether an event is new. The server resumes after the last one, so this is a second check.
function take(event) {
  const number = parseInt(event.id, 10);
  if (number <= last) return false;
  last = number;
  lastId = event.id;
  return true;
}

// Removes all lines.
function forget() {
  log.replaceChildren();
  gathered = [];
  blocks = [];
  lines = characters = cut = last = 0;
  lastId = "";
  document.getElementById("cut").hidden = true;
}

// Handles the reason for which a stream ended. Returns whether the build's output is complete.
function streamEnd(reason) {
  if (reason === "rewound") {
    // The server has lost some of the lines shown, and may have others in their place.
    forget();
  }
  if (reason !== "removed") return false;
  draw();
  connection.textContent = "The output of this build was removed.";
  return true;
}

function output(event) {
  if (!take(event)) return;
  const data = JSON.parse(event.data);
  const newline = data.newline !== false;
  if (gathered.length === 0) setTimeout(draw, GATHER);
  const line = visible(text(data).replace(/\r$/, ""));
  gathered.push({ kind: event.kind, line: line + (newline ? "\n" : ""), newline });
}

function showStatus(build) {
  status.textContent = build.exit_code === null ? build.status : `${build.status} (${build.exit_code})`;
  status.className = `badge ${build.status}`;
}

function end(event) {
  take(event);
  draw();
  const data = JSON.parse(event.data);
  showStatus(data);
  connection.textContent = "";
  document.getElementById("message").textContent = visible(data.message ?? "");
  document.title = `Build ${id}: ${data.status}`;
}

// Parses server-sent events as this server writes them, with LF.
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let message = { kind: "message", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const [, field, content] = line.match(/^([^:]*):? ?(.*)$/);
        if (line === "") {
          if (message.data.length > 0) yield { ...message, data: message.data.join("\n") };
          message = { kind: "message", data: [] };
        } else if (field === "event") message.kind = content;
        else if (field === "id") message.id = content;
        else if (field === "data") message.data.push(content);
      }
    }
  } finally {
    // Frees the connection when the caller stops early.
    reader.cancel().catch(() => {});
  }
}

// Reads the stream by `fetch`, since an EventSource cannot send the token. Returns whether the build's output is complete.
async function watch() {
  const headers = { Accept: "text/event-stream" };
  if (lastId) headers["Last-Event-ID"] = lastId;
  const answer = await ask(`/api/builds/${id}/events`, { headers, cache: "no-store" });
  if (answer.status === 204) return true;
  if (answer.status === 401) {
    connection.textContent = NO_TOKEN;
    return false;
  }
  if (!answer.ok) throw new Error(answer.status);
  pause = 500;
  connection.textContent = "live";
  for await (const message of messages(answer.body)) {
    if (message.kind === "stdout" || message.kind === "stderr") output(message);
    if (message.kind === "end") {
      end(message);
      return true;
    }
    if (message.kind === "stream-end" && streamEnd(message.data)) return true;
  }
  throw new Error("the stream ended before the build");
}

async function follow() {
  for (;;) {
    try {
      if (await watch()) return;
    } catch {
      connection.textContent = "The connection was lost; reconnecting.";
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

async function describe() {
  try {
    const answer = await ask(`/api/builds/${id}`);
    const build = await answer.json();
    if (!answer.ok) throw new Error(build.title);
    if (!status.textContent) showStatus(build);
    document.getElementById("command").textContent = shownCommand(build);
  } catch {
    setTimeout(describe, LONGEST_PAUSE);
  }
}

document.getElementById("title").textContent = `Build ${id}`;
document.title = `Build ${id}`;
describe();
follow();
