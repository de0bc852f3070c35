"use strict";

// How often the list is refreshed, in milliseconds.
const PAUSE = 1500;

const rows = document.getElementById("builds");
const connection = document.getElementById("connection");

function cell(row, text, kind) {
  const cell = row.insertCell();
  cell.textContent = text;
  if (kind) cell.className = kind;
  return cell;
}

function took(build) {
  const end = build.ended_at ? new Date(build.ended_at) : new Date();
  const seconds = Math.max(0, Math.round((end - new Date(build.created_at)) / 1000));
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

function show(builds) {
  const fresh = document.createDocumentFragment();
  for (const build of builds) {
    const row = document.createElement("tr");
    const link = document.createElement("a");
    link.href = `/builds/${build.id}`;
    link.textContent = build.id;
    row.insertCell().append(link);
    cell(row, build.status, `badge ${build.status}`);
    cell(row, build.exit_code ?? "");
    cell(row, new Date(build.created_at).toLocaleString());
    cell(row, took(build));
    const command = shownCommand(build);
    cell(row, command, "command").title = command;
    fresh.append(row);
  }
  rows.replaceChildren(fresh);
  document.getElementById("empty").hidden = builds.length > 0;
}

async function read() {
  try {
    const answer = await ask("/api/builds");
    if (answer.status === 401) {
      connection.textContent = NO_TOKEN;
    } else {
      if (!answer.ok) throw new Error(answer.status);
      show(await answer.json());
      connection.textContent = "";
      const starts = answer.headers.get("Allow")?.includes("POST") && sessionStorage.getItem(TOKEN);
      document.getElementById("start").hidden = !starts;
    }
  } catch {
    connection.textContent = "The server does not answer; retrying.";
  }
  setTimeout(read, PAUSE);
}

// Splits words as a shell does, with quotes and backslashes only, since no shell runs the command.
function words(line) {
  const found = line.match(/(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+/g) ?? [];
  return found.map((word) =>
    word.replace(/\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'/g, (_, escaped, double, single) =>
      escaped ?? single ?? double.replace(/\\(["\\])/g, "$1")));
}

async function start(event) {
  event.preventDefault();
  const field = document.getElementById("command");
  const refusal = document.getElementById("refusal");
  refusal.textContent = "";
  try {
    const answer = await ask("/api/builds", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ command: words(field.value) }),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.detail ?? body.title);
    location.assign(`/builds/${body.id}`);
  } catch (error) {
    refusal.textContent = error.message;
  }
}

document.getElementById("start").addEventListener("submit", start);
read();
