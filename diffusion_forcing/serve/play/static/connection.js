// A view's WebSocket: JSON, or a header and data behind it (serve/play/session.py).
// It comes back by itself where it was lost or taken.
const AGAIN = 1500; // ms

export class Connection {
  // heard(header, data: ArrayBuffer | null); changed(state): connecting, taken, lost, failed.
  constructor(view, heard, changed) {
    Object.assign(this, { view, heard, changed, closed: false });
    this.open();
  }

  open() {
    if (this.closed) return;
    this.changed("connecting");
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws/${this.view}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    let state = "lost";
    socket.onmessage = ({ data }) => {
      const [header, rest] = typeof data === "string" ? [JSON.parse(data), null] : unpacked(data);
      if (header.type === "taken") {
        state = "taken";
        this.changed(state);
        return;
      }
      if (header.type === "failed") {
        state = "failed";
        this.changed(state, header.text);
        return;
      }
      if (header.type === "ready") this.token = header.token;
      this.heard(header, rest);
    };
    socket.onclose = () => {
      if (this.closed || state === "failed") return;
      if (state === "lost") this.changed(state);
      setTimeout(() => this.open(), AGAIN);
    };
  }

  say(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  close() {
    this.closed = true;
    this.socket.close();
  }
}

function unpacked(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return [header, buffer.slice(4 + length)];
}
