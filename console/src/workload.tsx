// One workload: what it is, what it writes, what it takes, and a terminal in it.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ask, get, type Workload } from "./api";
import { ChartsTab } from "./charts";
import { useLive } from "./live";
import { LogsTab } from "./logs";
import { Actions, isUp, Kind, Status } from "./state";
import { TerminalTab } from "./terminal";
import { Empty, Title, Waiting } from "./ui";
import { ago, bytes, percent } from "./words";

const TABS: [string, string][] = [
  ["overview", "Overview"],
  ["logs", "Logs"],
  ["terminal", "Terminal"],
  ["charts", "Charts"],
];

export function WorkloadPage({ id, tab }: { id: string; tab: string }) {
  const { workloads, cpu, failure } = useLive();
  const workload = workloads?.find((workload) => workload.id === id || workload.name === id);
  if (!workloads) return <Waiting failure={failure} />;
  if (!workload) {
    return (
      <>
        <Title text="Gone" />
        <Empty text="There is no such workload any more.">
          <a href="#/workloads">To the workloads</a>
        </Empty>
      </>
    );
  }
  return (
    <>
      <p class="crumb">
        <a href="#/workloads">Workloads</a>
      </p>
      <Title text={workload.name}>
        <Actions workload={workload} gone={() => (location.hash = "#/workloads")} />
      </Title>
      <p class="facts">
        <Status workload={workload} /> <Kind workload={workload} /> <span>{workload.image}</span>
      </p>
      {workload.state.error && <p class="failure">{workload.state.error}</p>}
      <nav class="tabs" aria-label={`Parts of ${workload.name}`}>
        {TABS.map(([name, title]) => (
          <a key={name} href={`#/workloads/${id}/${name}`} aria-current={tab === name ? "page" : undefined}>
            {title}
          </a>
        ))}
      </nav>
      {tab === "logs" ? (
        <LogsTab key={workload.state.started_ms} workload={workload} />
      ) : tab === "terminal" ? (
        <TerminalTab key={workload.state.started_ms} workload={workload} />
      ) : tab === "charts" ? (
        <ChartsTab key={workload.state.started_ms} workload={workload} />
      ) : (
        <Overview workload={workload} cpu={cpu.get(workload.id)} />
      )}
    </>
  );
}

interface Inspected {
  Config: { Env: string[] | null; WorkingDir: string; User: string; Hostname: string };
}

function Overview({ workload, cpu }: { workload: Workload; cpu: number | undefined }) {
  const [seen, setSeen] = useState<Inspected>();
  useEffect(() => {
    get<Inspected>(`/containers/${workload.id}/json`).then(setSeen, () => undefined);
  }, [workload.id]);
  const { state, traffic } = workload;
  const network = traffic?.network;
  const block = traffic?.block;
  const facts: [string, ComponentChildren][] = [
    ["Id", <code>{workload.id.slice(0, 12)}</code>],
    ["Command", <code>{workload.command.join(" ")}</code>],
    ["Made", ago(workload.created_ms)],
    ["Started", ago(state.started_ms)],
    ["Ended", ago(state.finished_ms)],
    ["Started again", `${state.restarts} times`],
    ["Ports", workload.publish.length ? workload.publish.join(", ") : "none published"],
    ["Processor", percent(cpu)],
    ["Memory", workload.memory_limit_bytes ? `${bytes(workload.memory_bytes)} of ${bytes(workload.memory_limit_bytes)}` : bytes(workload.memory_bytes)],
    ["Network", network ? `${bytes(network.received_bytes)} in, ${bytes(network.sent_bytes)} out` : "not counted"],
    ["Disks", block ? `${bytes(block.read_bytes)} read, ${bytes(block.written_bytes)} written` : "not counted"],
  ];
  if (seen) {
    facts.push(["Host name", seen.Config.Hostname || "–"], ["User", seen.Config.User || "root"], ["Folder", seen.Config.WorkingDir || "/"]);
  }
  return (
    <>
      <dl class="facts-list">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {isUp(workload) && <Processes workload={workload} />}
    </>
  );
}

function Processes({ workload }: { workload: Workload }) {
  const [seen, setSeen] = useState<{ Titles: string[]; Processes: string[][] }>();
  const [failure, setFailure] = useState("");
  const look = async () => {
    try {
      setSeen(await (await ask("GET", `/containers/${workload.id}/top`)).json());
      setFailure("");
    } catch (error) {
      setFailure(String(error instanceof Error ? error.message : error));
    }
  };
  return (
    <details onToggle={(event) => event.currentTarget.open && void look()}>
      <summary>Processes</summary>
      {failure && <p class="quiet">{failure}</p>}
      {seen && (
        <div class="wide" tabIndex={0} role="region" aria-label="Processes">
          <table>
            <caption class="unseen">Processes</caption>
            <thead>
              <tr>
                {seen.Titles.map((title) => (
                  <th key={title} scope="col">
                    {title}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {seen.Processes.map((row) => (
                <tr key={row.join()}>
                  {row.map((cell, index) => (
                    <td key={index} data-title={seen.Titles[index]}>
                      {cell}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}
