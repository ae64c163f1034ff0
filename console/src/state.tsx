// How a workload is, and what can be done to it.

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import * as api from "./api";
import type { Workload } from "./api";
import { refresh } from "./live";
import { SnapshotDialog } from "./snapshots";
import { attempt, Button, Dialog, say } from "./ui";

const WORDS: Record<Workload["state"]["status"], [string, string]> = {
  created: ["Created", "still"],
  starting: ["Starting", "busy"],
  running: ["Running", "good"],
  paused: ["Paused", "busy"],
  restarting: ["Restarting", "busy"],
  exited: ["Exited", "still"],
  lost: ["Lost", "bad"],
};

export function Status({ workload }: { workload: Workload }) {
  const { status, exit_code, health } = workload.state;
  const [word, tone] = WORDS[status];
  const failed = status === "exited" && exit_code !== 0;
  const text = status === "exited" && exit_code !== null ? `${word} (${exit_code})` : word;
  return (
    <span class={`status ${failed || health?.status === "unhealthy" ? "bad" : tone}`}>
      {health ? `${text}, ${health.status}` : text}
    </span>
  );
}

export function Kind({ workload }: { workload: Workload }) {
  return <span class="kind">{workload.isolation === "vm" ? "microVM" : "container"}</span>;
}

export const isUp = ({ state }: Workload) => ["starting", "running", "paused", "restarting"].includes(state.status);

/** All that can be done to it, as it is just now. `gone` is called when it is removed. */
export function Actions({ workload, gone, brief }: { workload: Workload; gone?: () => void; brief?: boolean }) {
  const [asks, setAsks] = useState<"remove" | "snapshot">();
  const { id, name, isolation } = workload;
  const status = workload.state.status;
  const does = (verb: string, done: string, act: () => Promise<unknown>, tone?: "main") => (
    <Button
      tone={tone}
      aria-label={`${verb} ${name}`}
      act={async () => {
        if (await attempt(`${verb} ${name}`, act)) say(`${name} ${done}`);
        await refresh();
      }}
    >
      {verb}
    </Button>
  );
  const buttons: ComponentChildren[] = [];
  if (!isUp(workload)) buttons.push(does("Start", "is started", () => api.start(id)));
  if (status === "running" && isolation === "vm") {
    buttons.push(
      <Button
        aria-label={`Fork ${name}`}
        act={async () => {
          await attempt(`Fork ${name}`, async () => {
            const copies = (await api.fork(id)) ?? [];
            say(`${name} has a copy that runs: ${copies.map((copy) => copy.name).join(", ")}`);
          });
          await refresh();
        }}
      >
        Fork
      </Button>,
    );
    if (!brief) {
      buttons.push(
        <Button aria-label={`Snapshot ${name}`} act={() => setAsks("snapshot")}>
          Snapshot
        </Button>,
      );
    }
  }
  if (!brief && status === "running") buttons.push(does("Pause", "stands still", () => api.pause(id)));
  if (status === "paused") buttons.push(does("Resume", "goes on", () => api.resume(id)));
  if (isUp(workload) && status !== "paused") buttons.push(does("Stop", "is stopped", () => api.stop(id)));
  buttons.push(
    <Button tone="danger" aria-label={`Remove ${name}`} act={() => setAsks("remove")}>
      Remove
    </Button>,
  );
  return (
    <div class="actions">
      {buttons}
      {asks === "remove" && (
        <Dialog
          title={`Remove ${name}?`}
          verb="Remove"
          danger
          close={() => setAsks(undefined)}
          act={async () => {
            await api.remove(id);
            say(`${name} is removed`);
            await refresh();
            gone?.();
          }}
        >
          <p>{isUp(workload) ? "It runs: it is killed first. " : ""}Its log and what it wrote go with it.</p>
        </Dialog>
      )}
      {asks === "snapshot" && <SnapshotDialog workload={workload} close={() => setAsks(undefined)} />}
    </div>
  );
}
