"use strict";

// How often the list is read again, in milliseconds.
const PAUSE = 1500;
const TOKEN = "buildwatch-token";

const rows = document.getElementById("builds");
const connection = document.getElementById("connection");

// The address that `serve --allow-start` prints has the token after the `#`, which is never sent to anybody. It stays
// with this tab, and out of the address bar.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(TOKEN);
}

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
    const command = build.command ? build.command.join(" ") : "(sealed under another key)";
    cell(row, command, "command").title = command;
    fresh.append(row);
  }
  rows.replaceChildren(fresh);
  document.getElementById("empty").hidden = builds.length > 0;
}

async function read() {
  try {
    const answer = await fetch("/api/builds");
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
    connection.textContent = "";
  } catch {
    connection.textContent = "The server does not answer; trying again.";
  }
  setTimeout(read, PAUSE);
}

// Words as a shell splits them, with quotes and backslashes and nothing more: there is no shell.
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
    const answer = await fetch("/api/builds", {
      method: "POST",
      headers: { "Content-Type": "application/json", "Authorization": `Bearer ${sessionStorage.getItem(TOKEN)}` },
      body: JSON.stringify({ command: words(field.value) }),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.detail ?? body.title);
    location.assign(`/builds/${body.id}`);
  } catch (error) {
    refusal.textContent = error.message;
  }
}

function offerToStart() {
  if (takeToken()) document.getElementById("start").hidden = false;
}

document.getElementById("start").addEventListener("submit", start);
// The address may be pasted into a tab that has this page already.
addEventListener("hashchange", offerToStart);
offerToStart();
read();
