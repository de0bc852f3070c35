"use strict";

// The page keeps this many lines and characters; a browser is no place for a million lines, nor for one without an end.
const MOST_LINES = 20000;
const MOST_CHARACTERS = 8000000;
// What arrives within this many milliseconds is drawn at once.
const GATHER = 30;
// The longest pause before the server is tried again, in milliseconds.
const LONGEST_PAUSE = 5000;

const id = location.pathname.split("/")[2];
const log = document.getElementById("log");
const connection = document.getElementById("connection");
const status = document.getElementById("status");

let last = 0;        // the last event that was taken: what to resume with
let pause = 500;
let gathered = [];   // pieces that are not drawn yet
let blocks = [];     // what is drawn, oldest first, with its number of lines
let lines = 0;
let characters = 0;
let cut = 0;

const decoder = new TextDecoder();

function text(data) {
  if (data.base64 === undefined) return data.text;
  return decoder.decode(Uint8Array.from(atob(data.base64), (character) => character.charCodeAt(0)));
}

// A control character is shown as its picture (U+2400 and on), not obeyed and not lost.
function visible(line) {
  return line.replace(/\r$/, "").replace(/[\x00-\x08\x0b-\x1f\x7f]/g, (character) =>
    String.fromCharCode(character === "\x7f" ? 0x2421 : 0x2400 + character.charCodeAt(0)));
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

// Whether an event is new. After a reconnection the server begins where we stopped, so this is a belt to its braces.
function take(event) {
  const number = Number(event.lastEventId);
  if (number <= last) return false;
  last = number;
  return true;
}

function output(kind) {
  return (event) => {
    if (!take(event)) return;
    const data = JSON.parse(event.data);
    const newline = data.newline !== false;
    if (gathered.length === 0) setTimeout(draw, GATHER);
    gathered.push({ kind, line: visible(text(data)) + (newline ? "\n" : ""), newline });
  };
}

function showStatus(build) {
  status.textContent = build.exit_code === null ? build.status : `${build.status} (${build.exit_code})`;
  status.className = `badge ${build.status}`;
}

function end(source) {
  return (event) => {
    source.close();
    take(event);
    draw();
    const data = JSON.parse(event.data);
    showStatus(data);
    connection.textContent = "";
    document.getElementById("message").textContent = data.message ?? "";
    document.title = `Build ${id}: ${data.status}`;
  };
}

function follow() {
  const source = new EventSource(`/api/builds/${id}/events?from=${last}`);
  source.addEventListener("open", () => { pause = 500; connection.textContent = "live"; });
  source.addEventListener("stdout", output("stdout"));
  source.addEventListener("stderr", output("stderr"));
  source.addEventListener("end", end(source));
  source.addEventListener("error", () => {
    connection.textContent = "The connection was lost; trying again.";
    // A refusal, unlike a lost connection, is final for an EventSource; but a server that starts up refuses, too.
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(follow, pause);
      pause = Math.min(2 * pause, LONGEST_PAUSE);
    }
  });
}

async function describe() {
  try {
    const answer = await fetch(`/api/builds/${id}`);
    const build = await answer.json();
    if (!answer.ok) throw new Error(build.title);
    if (!status.textContent) showStatus(build);
    document.getElementById("command").textContent = build.command ? build.command.join(" ") : "(sealed under another key)";
  } catch {
    setTimeout(describe, LONGEST_PAUSE);
  }
}

document.getElementById("title").textContent = `Build ${id}`;
document.title = `Build ${id}`;
describe();
follow();
