/*
 * The page: the room and the nickname, the users, and what people do.
 *
 * The address names the room, as #room. After each connect, and when a link changes the address,
 * the page asks for that room and for the wanted nickname, and then shows which it has got.
 */

import * as connection from "./connection.js";
import * as log from "./log.js";

const find = (id) => document.getElementById(id);
const [roomField, nickField, messageField] = ["room", "nick", "message"].map(find);
// The id of a field is what the protocol calls its text, too.
const ACTIONS = { room: "join_room", nick: "set_nick", message: "chat_message" };
// A tab remembers its nickname and its draft, the browser a nickname for new tabs.
const [tab, browser] = navigator.cookieEnabled ? [sessionStorage, localStorage] : [{}, {}];
const me = { room: "", nick: "" }; // as the server has confirmed it
const asked = {}; // the room and the nickname that the server has not responded to yet

// The server

function receive({ action, room, user, message, shame, from_user: oldName, to_user: newName }) {
  if (action === "chat_message") showMessage(user, message);
  else if (action === "joined") changeUser(null, user, "joined");
  else if (action === "left") changeUser(user, null, shame ? "left without a goodbye" : "left");
  else if (action === "nick_changed") changeUser(oldName, newName);
  else if (action === "connecting") {
    Object.assign(me, { room, nick: user });
    tab.nick ??= browser.nick ?? user;
    goToAddress();
  }
}

function lose(since) {
  showStatus("Disconnected", ". Reconnecting; what you type is kept.");
  const time = log.clock.format(since);
  log.show("notice", `You were disconnected. Messages after ${time} are missing.`);
}

const ask = (field, text) => connection.request({ action: ACTIONS[field.id], [field.id]: text });

// The room and the nickname

/** Ask for the room in the address, and for the nickname that the user wants. */
async function goToAddress() {
  await Promise.all([move(roomField, roomInAddress()), move(nickField, tab.nick)]);
  showPlace();
}

function roomInAddress() {
  const room = location.hash.slice(1) || "default";
  try {
    return decodeURIComponent(room);
  } catch {
    return room; // with a % that begins no code
  }
}

/** Ask for a room or a nickname, unless this is done. */
async function move(field, name) {
  if (name === me[field.id] || name === asked[field.id]) return;
  asked[field.id] = name;
  const response = await ask(field, name);
  asked[field.id] = undefined;
  if (response.success) me[field.id] = name;
  if (response.success && isRefused(field)) field.value = field.defaultValue;
  if (!response.success && field.value === field.defaultValue) field.value = name; // to try again
  showResult(field, response);
}

async function enterName(field) {
  const name = (field.value = field.value.trim());
  if (name === field.defaultValue) messageField.focus();
  await move(field, name);
  if (field === nickField && name === me.nick) tab.nick = browser.nick = name;
  showPlace();
}

/** Show the room and the nickname. */
function showPlace() {
  if (!connection.isConnected) return;
  const isNewRoom = me.room !== roomField.defaultValue;
  const isNew = isNewRoom || me.nick !== nickField.defaultValue;
  // The Back button leads back to a room that was left by the form, and not by a link.
  const isByForm = isNewRoom && roomInAddress() === roomField.defaultValue;
  history[isByForm ? "pushState" : "replaceState"](null, "", `#${encodeURIComponent(me.room)}`);
  for (const field of [roomField, nickField]) {
    const isFree = field.value === field.defaultValue && !isRefused(field);
    field.defaultValue = me[field.id];
    if (isFree) field.value = field.defaultValue;
  }
  showStatus("Connected");
  showTitle();
  if (isNew) log.show("line", "You are ", log.nameOf(me.nick), " in ", log.nameOf(me.room));
  if (isNewRoom) messageField.focus();
  showUsers();
}

function showStatus(state, details = "") {
  document.body.dataset.state = state;
  find("status").textContent = state + details;
}

/** Show next to a field why its text was refused or not sent, if so. */
function showResult(field, { success, action, message }) {
  field.setAttribute("aria-invalid", !success && action !== undefined);
  find(`${field.id}-refusal`).textContent = success ? "" : message;
}

const isRefused = (field) => field.getAttribute("aria-invalid") === "true";

// The users of the room

const users = new Map(); // their list items, by name

async function showUsers() {
  const response = await connection.request({ action: "user_list", room: me.room });
  if (response.room !== me.room) return; // another room by now, or no response
  users.clear();
  find("users").replaceChildren();
  for (const name of response.users) addUser(name);
  find("user-count").textContent = users.size;
}

function addUser(name) {
  const item = document.createElement("li");
  item.append(log.nameOf(name), name === me.nick ? " (you)" : "");
  find("users").append(item);
  users.set(name, item);
}

/** Show that somebody joined (without an old name), left (without a new one), or has another. */
function changeUser(oldName, newName, deed) {
  users.get(oldName)?.remove();
  users.delete(oldName);
  if (newName) addUser(newName);
  find("user-count").textContent = users.size;
  log.showChange(oldName ?? newName, newName ?? oldName, deed);
  // The wanted nickname is free: often the page's own broken connection had it.
  if (oldName === tab.nick) goToAddress();
}

// Messages

let unread = 0; // messages since the page was hidden
let mentions = 0; // those of them that mention the user
let lastSaid = "";

function showMessage(user, message) {
  if (document.hidden && unread === 0) log.show("line", "New since you left");
  const isMention = log.showMessage(user, message, me.nick);
  if (!document.hidden) return;
  unread += 1;
  if (isMention) mentions += 1;
  showTitle();
  if (isMention && window.Notification?.permission === "granted") {
    const body = message.slice(0, 200);
    new Notification(`${user} in ${me.room}`, { body, tag: "mention", silent: true });
  }
}

function showTitle() {
  const counts = [mentions && `@${mentions}`, unread].filter(Boolean).join(", ");
  document.title = `${counts && `(${counts}) `}${me.room && `${me.room} - `}aiohttp chat`;
}

async function say() {
  const text = messageField.value;
  if (!text.trim()) return;
  lastSaid = text;
  write("");
  const response = await ask(messageField, text);
  if (response.success) log.showMessage(me.nick, text, me.nick, true);
  else write(messageField.value ? `${text}\n${messageField.value}` : text);
  showResult(messageField, response);
}

/** Put a text into the message field, in place of all or of a part of what it holds. */
function write(text, start = 0, end = messageField.value.length) {
  messageField.setRangeText(text, start, end, "end");
  fit();
}

/** Let the message field grow with its text, where the style sheet cannot do it. */
function fit() {
  if (CSS.supports("field-sizing", "content")) return;
  messageField.style.height = "auto";
  messageField.style.height = `${messageField.scrollHeight + 2}px`; // and its border
}

/** Complete the name before the cursor; return whether it is one of the room. */
function completeName() {
  const { value, selectionStart: end } = messageField;
  const [word] = value.slice(0, end).match(/[^\s@]*$/);
  const fits = (name) => name !== me.nick && name.toLowerCase().startsWith(word.toLowerCase());
  const name = word && [...users.keys()].find(fits);
  if (name) write(`${name} `, end - word.length, end);
  return Boolean(name);
}

messageField.onkeydown = (event) => {
  // Safari ends the composition of a Chinese word before the keydown of its Enter, which is a 229.
  if (event.isComposing || event.keyCode === 229 || event.shiftKey) return;
  if (event.key === "Enter") say();
  else if (event.key === "ArrowUp" && !messageField.value) write(lastSaid);
  else if (event.key === "PageUp") log.scrollPage(-1);
  else if (event.key === "PageDown") log.scrollPage(1);
  else if (event.key !== "Tab" || !completeName()) return;
  event.preventDefault();
};

// The whole page

document.onsubmit = (event) => {
  event.preventDefault();
  const field = event.target.querySelector("input, textarea");
  if (field === messageField) say();
  else enterName(field);
};

document.oninput = (event) => {
  showResult(event.target, { success: true });
  fit();
};

document.onkeydown = (event) => {
  const isShortcut = event.ctrlKey || event.altKey || event.metaKey || event.key === " ";
  const isText = event.key?.length === 1 && !isShortcut;
  if (isText && !event.target.matches("input, textarea")) messageField.focus();
};

document.onclick = (event) => {
  const name = event.target.closest("bdi")?.textContent;
  if (!users.has(name) || !getSelection().isCollapsed) return; // or somebody selects the name
  const { value, selectionStart: start, selectionEnd: end } = messageField;
  const space = /\S$/.test(value.slice(0, start)) ? " " : "";
  write(`${space}@${name} `, start, end);
  messageField.focus();
};

const notify = find("notify");
notify.hidden = window.Notification?.permission !== "default";
notify.onclick = () => {
  notify.hidden = true;
  Notification.requestPermission();
};

document.onvisibilitychange = () => {
  if (document.hidden) return;
  unread = mentions = 0;
  showTitle();
  connection.check();
};

window.onhashchange = () => connection.isConnected && goToAddress();
window.ononline = window.onoffline = connection.check;
window.onpageshow = (event) => event.persisted && connection.check(); // after the Back button
window.onpagehide = () => {
  tab.draft = messageField.value;
  if (connection.isConnected) connection.disconnect(); // with a close frame
};

write(tab.draft ?? "");
showStatus("Connecting", "…");
Object.assign(connection.handlers, { receive, lose, check: showUsers });
connection.connect();
