// A shell in a workload.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Workload } from "./api";
import { Button } from "./ui";

const DARK = { background: "#10161c", foreground: "#e4e9ee", cursor: "#8cc8f0", selectionBackground: "#35536b" };
const LIGHT = { background: "#ffffff", foreground: "#1c2530", cursor: "#1f5f8b", selectionBackground: "#bcd9ee" };

export function TerminalTab({ workload }: { workload: Workload }) {
  const [session, setSession] = useState(0);
  if (workload.state.status !== "running") {
    return <p class="quiet">A terminal can be opened in a workload that runs.</p>;
  }
  return <Session key={session} workload={workload} again={() => setSession((count) => count + 1)} />;
}

function Session({ workload, again }: { workload: Workload; again: () => void }) {
  const place = useRef<HTMLDivElement>(null);
  const leave = useRef<HTMLButtonElement>(null);
  const [ended, setEnded] = useState("");
  useEffect(() => {
    if (!place.current) return;
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const terminal = new Terminal({
      cursorBlink: true,
      fontSize: 14,
      fontFamily: "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace",
      // What it shows is in the page as text too.
      screenReaderMode: true,
      scrollback: 5000,
      theme: scheme.matches ? DARK : LIGHT,
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(place.current);
    fit.fit();
    const recolour = () => (terminal.options.theme = scheme.matches ? DARK : LIGHT);
    scheme.addEventListener("change", recolour);

    const { rows, cols } = terminal;
    const url = new URL(`/strata/v1/workloads/${workload.id}/terminal?rows=${rows}&columns=${cols}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    const encoder = new TextEncoder();
    const send = (data: string | Uint8Array<ArrayBuffer>) => socket.readyState === WebSocket.OPEN && socket.send(data);
    let code: number | undefined;
    socket.onopen = () => terminal.focus();
    socket.onmessage = ({ data }) => {
      if (typeof data === "string") code = (JSON.parse(data) as { exit_code?: number }).exit_code;
      else terminal.write(new Uint8Array(data as ArrayBuffer));
    };
    socket.onclose = () => setEnded(code === undefined ? "The connection ended." : `The shell ended with ${code}.`);
    terminal.onData((text) => send(encoder.encode(text)));
    terminal.onBinary((text) => send(Uint8Array.from(text, (char) => char.charCodeAt(0))));
    terminal.onResize(({ rows, cols }) => send(JSON.stringify({ rows, columns: cols })));
    // Tab belongs to the shell; there must be another way out.
    terminal.attachCustomKeyEventHandler((event) => {
      if (event.key !== "F6" || !event.shiftKey) return true;
      if (event.type === "keydown") leave.current?.focus();
      return false;
    });
    const resized = new ResizeObserver(() => fit.fit());
    resized.observe(place.current);
    return () => {
      resized.disconnect();
      scheme.removeEventListener("change", recolour);
      socket.onclose = null;
      socket.close();
      terminal.dispose();
    };
  }, [workload.id]);
  return (
    <section aria-label="Terminal">
      <div class="bar">
        <span class="quiet" role="status">
          {ended || `A shell in ${workload.name}. Shift+F6 leaves the terminal.`}
        </span>
        <button type="button" ref={leave} onClick={again}>
          New session
        </button>
        {ended && <Button act={again}>Open another</Button>}
      </div>
      <div ref={place} class="shell" />
    </section>
  );
}
