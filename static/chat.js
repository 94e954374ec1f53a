/*
 * The chat in a browser: one WebSocket, and the page that shows what comes through it.
 *
 * Read it from top to bottom: what the page remembers, the connection, the requests that leave, the answers and the
 * broadcasts that arrive, how they are shown, and last what people do. Two ideas carry the rest:
 *
 * - Answers come in the order of the requests but don't repeat all of what was asked, so `pending` remembers it.
 * - The address says where one wants to be: #room/nick. After every connect, and when a link changes the address, the
 *   page asks the server for what differs, and then writes into the address what the server made of it.
 */

const MAX_FRAME = 64 * 1024; // bytes; the server ends a connection that sends more at once
const MAX_ENTRIES = 1000; // messages and notices that stay on the page
const PATIENCE = 10_000; // milliseconds until a server that owes an answer counts as gone
const SHORTEST_PAUSE = 1_000; // milliseconds until the next try to connect, twice as long after each
const LONGEST_PAUSE = 30_000;

const find = (id) => document.getElementById(id);
const [statusLine, userList, log, newMessages] = ["status", "users", "log", "new-messages"].map(find);
const messageField = find("message");
// Where people enter what a request asks for, and where they see it refused. The ids are the names in the protocol.
const FIELDS = { join_room: find("room"), set_nick: find("nick"), chat_message: messageField };

const me = { room: "", nick: "" }; // as the server confirmed it
const pending = []; // the requests without an answer yet, oldest first
const users = new Map(); // the list item of each nickname
const waiting = []; // entries on their way into the log
let socket, state;
let timer; // until the server counts as gone, or until the next try to connect
let pause = SHORTEST_PAUSE;
let following = true; // whether the end of the log is in view
let unseen = 0; // messages below what is in view
let unread = 0; // messages since the tab was hidden

// The connection

function connect() {
  showState("Connecting", "…");
  const address = new URL("chat", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(address);
  socket.onmessage = (event) => hear(event.data);
  socket.onclose = disconnect;
  awaitFrame();
}

/** Give up the connection, whoever ended it, and come back later. */
function disconnect() {
  socket.onmessage = socket.onclose = null; // a server that was silent for too long may still wake up
  socket.close();
  for (const request of pending.splice(0).reverse()) {
    giveBack(request, "The connection broke before the server confirmed this. It may have arrived.");
  }
  const delay = pause * (1 - Math.random() / 4); // or all pages would come back to a new server in the same instant
  pause = Math.min(2 * pause, LONGEST_PAUSE);
  clearTimeout(timer);
  timer = setTimeout(connect, delay);
  showState("Disconnected", `, trying again in ${Math.ceil(delay / 1000)} s. What you type is kept.`);
}

/** Watch the clock while the server owes a frame: a network can vanish without a word, and a page can't ping. */
function awaitFrame() {
  clearTimeout(timer);
  if (state === "Connecting" || pending.length) timer = setTimeout(disconnect, PATIENCE);
}

/** Come back at once, or see whether the connection is still there. */
function checkConnection() {
  if (state === "Disconnected") connect();
  else if (state === "Connected") ask({ action: "user_list", room: me.room });
}

// Requests

/** Send a request; return a sentence if it can't be sent, else an empty text. */
function ask(request) {
  const frame = JSON.stringify(request);
  const size = new TextEncoder().encode(frame).length;
  if (size > MAX_FRAME) return `This is too long: it takes ${size} bytes to send, and ${MAX_FRAME} is the limit.`;
  socket.send(frame);
  pending.push(request);
  awaitFrame();
  return "";
}

/** Ask for what somebody entered into a field. */
function submit(action, field) {
  if (field.value === field.defaultValue) return showRefusal(field, ""); // the name that one has, or no message
  const request = { action, [field.id]: field.value };
  const problem = state === "Connected" ? ask(request) : "This was not sent, as there was no connection.";
  showRefusal(field, problem);
  if (!problem && field === messageField) field.value = "";
}

/** Say next to its field why a request failed, and let nobody type it again. */
function giveBack(request, sentence, isInvalid = false) {
  const field = FIELDS[request.action];
  if (!field) return; // nobody entered it
  if (field.value === field.defaultValue) field.value = request[field.id];
  else if (field === messageField) field.value = `${request.message}\n${field.value}`;
  showRefusal(field, sentence, isInvalid);
}

/** Ask for the room and the nickname that the address names. */
function goToAddress() {
  const [room, nick] = readAddress();
  const moves = [{ action: "join_room", room: room || "default" }];
  if (nick) moves.push({ action: "set_nick", nick });
  for (const move of moves) {
    const field = FIELDS[move.action];
    const problem = move[field.id] !== me[field.id] && ask(move);
    if (problem) showRefusal(field, problem);
  }
  settle();
}

function readAddress() {
  const names = location.hash.slice(1).split("/");
  try {
    return names.map(decodeURIComponent);
  } catch {
    return names; // somebody typed a lone % into the address
  }
}

function writeAddress() {
  // encodeURIComponent throws on half of a surrogate pair.
  const [room, nick] = [me.room, me.nick].map((name) => encodeURIComponent(name.toWellFormed()));
  history.replaceState(null, "", `#${room}/${nick}`);
}

// What arrives

function hear(data) {
  const body = readBody(data);
  if (typeof body.success === "boolean") hearAnswer(body);
  else hearBroadcast(body);
  awaitFrame();
}

/** Return the object in a frame, an empty one if the frame makes no sense. */
function readBody(data) {
  try {
    return Object(JSON.parse(data));
  } catch {
    return {};
  }
}

const areTexts = (...values) => values.every((value) => typeof value === "string");

function hearBroadcast({ action, room, user, message, shame, from_user: from, to_user: to }) {
  if (action === "connecting" && areTexts(room, user)) {
    Object.assign(me, { room, nick: user });
    goToAddress();
  } else if (action === "joined" && areTexts(user)) {
    addUser(user);
    showNotice(nameOf(user), " joined");
  } else if (action === "left" && areTexts(user)) {
    removeUser(user);
    showNotice(nameOf(user), shame ? " left without a goodbye" : " left");
  } else if (action === "nick_changed" && areTexts(from, to)) {
    removeUser(from);
    addUser(to);
    showNotice(nameOf(from), " is now ", nameOf(to));
  } else if (action === "chat_message" && areTexts(user, message)) {
    showMessage(user, message);
  }
}

function hearAnswer({ action, success, message, users: nicks }) {
  if (action !== pending[0]?.action) return; // it answers nothing
  const request = pending.shift();
  if (action === "user_list") {
    if (request.room === me.room && Array.isArray(nicks)) showUsers(nicks.filter((nick) => areTexts(nick)));
    return;
  }
  if (!success) {
    settle();
    return giveBack(request, areTexts(message) ? message : "The server refused this.", true);
  }
  const field = FIELDS[action];
  if (action === "chat_message") {
    showMessage(me.nick, request.message, true);
  } else {
    me[field.id] = request[field.id];
    if (field.getAttribute("aria-invalid") === "true") field.value = field.defaultValue; // another one, refused before
  }
  showRefusal(field, "");
  settle();
}

/** Show where one is and as whom, once the server has answered all that could change it. */
function settle() {
  if (pending.some(({ action }) => action === "join_room" || action === "set_nick")) return;
  pause = SHORTEST_PAUSE;
  writeAddress();
  const before = statusLine.textContent;
  showState("Connected", " to ", nameOf(me.room), " as ", nameOf(me.nick));
  if (statusLine.textContent === before) return; // all was refused, so nothing has changed
  showName(FIELDS.join_room, me.room);
  showName(FIELDS.set_nick, me.nick);
  showNotice("You are ", nameOf(me.nick), " in ", nameOf(me.room));
  showTitle();
  ask({ action: "user_list", room: me.room });
}

// The page: what others say and call themselves is only ever set as text, never as markup

/** Return a name in an element of its own, so that one that runs from right to left does not turn its neighbours. */
function nameOf(name) {
  const element = document.createElement("bdi");
  element.textContent = name;
  return element;
}

function showState(text, ...details) {
  state = document.body.dataset.state = text;
  statusLine.replaceChildren(text, ...details);
}

function showTitle() {
  document.title = (unread ? `(${unread}) ` : "") + (me.room && `${me.room} - `) + "aiohttp chat";
}

function showRefusal(field, sentence, isInvalid = false) {
  field.setAttribute("aria-invalid", isInvalid);
  find(`${field.id}-refusal`).textContent = sentence;
}

/** Show a name in its field, unless somebody is entering another one there. */
function showName(field, name) {
  if (field.value === field.defaultValue) field.value = name;
  field.defaultValue = name;
}

function showUsers(nicks) {
  users.clear();
  userList.replaceChildren();
  nicks.forEach(addUser);
}

function addUser(nick) {
  removeUser(nick); // no name twice, whatever the server says
  const item = document.createElement("li");
  item.append(nameOf(nick), nick === me.nick ? " (you)" : "");
  userList.append(item);
  users.set(nick, item);
  find("user-count").textContent = users.size;
}

function removeUser(nick) {
  users.get(nick)?.remove();
  users.delete(nick);
  find("user-count").textContent = users.size;
}

function showMessage(user, message, own = false) {
  const entry = createEntry("message-template", message);
  entry.querySelector(".user").textContent = user;
  if (own) {
    entry.classList.add("own");
    entry.querySelector(".user").after(" (you)");
  } else if (document.hidden) {
    unread += 1;
    showTitle();
  }
  showEntry(entry);
}

function showNotice(...parts) {
  showEntry(createEntry("notice-template", ...parts));
}

const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });

function createEntry(template, ...parts) {
  const entry = find(template).content.firstElementChild.cloneNode(true);
  const time = entry.querySelector("time");
  time.dateTime = new Date().toISOString();
  time.textContent = clock.format();
  entry.querySelector(".text").append(...parts);
  return entry;
}

/** Show an entry soon, with all that come until then: to measure the page once for each would be slow. */
function showEntry(entry) {
  // requestAnimationFrame sounds right, but it stands still in a hidden tab.
  if (waiting.push(entry) === 1) setTimeout(showWaiting, 20);
}

function showWaiting() {
  const entries = waiting.splice(0).slice(-MAX_ENTRIES);
  const follow = isAtEnd() || entries.some((entry) => entry.matches(".own"));
  log.append(...entries);
  const [top, height] = [log.scrollTop, log.scrollHeight];
  while (log.childElementCount > MAX_ENTRIES) log.firstElementChild.remove();
  if (follow) return scrollToEnd();
  log.scrollTop = top - (height - log.scrollHeight); // the same lines stay in view
  showUnseen(unseen + entries.filter((entry) => entry.matches(".message")).length);
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 30; // pixels, about a line

function scrollToEnd() {
  log.scrollTop = log.scrollHeight;
  showUnseen(0);
}

function showUnseen(count) {
  unseen = count;
  newMessages.hidden = count === 0;
  newMessages.textContent = `${count} new message${count === 1 ? "" : "s"}`;
}

// What people do

for (const [action, field] of Object.entries(FIELDS)) {
  field.form.onsubmit = (event) => {
    event.preventDefault();
    submit(action, field);
  };
  field.oninput = () => showRefusal(field, "");
}

messageField.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // a new line, or a Japanese word
  event.preventDefault();
  messageField.form.requestSubmit();
};

log.onscroll = () => {
  following = isAtEnd();
  if (following) showUnseen(0);
};

// A phone's keyboard makes the log smaller.
new ResizeObserver(() => following && scrollToEnd()).observe(log);

newMessages.onclick = () => {
  scrollToEnd();
  messageField.focus(); // the button is gone, and the focus with it
};

document.onvisibilitychange = () => {
  if (document.hidden) return;
  unread = 0;
  showTitle();
  checkConnection();
};

window.onhashchange = () => state === "Connected" && goToAddress();
window.ononline = window.onoffline = checkConnection;
window.onpagehide = disconnect; // a goodbye
window.onpageshow = (event) => event.persisted && checkConnection(); // the Back button led to the page as it was

messageField.focus();
connect();
