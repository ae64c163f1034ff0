// What a workload takes, second by second.

import { useEffect, useState } from "preact/hooks";
import { ask, lines, why, type Workload } from "./api";
import { useSeen } from "./live";
import { isUp } from "./state";
import { bytes, percent } from "./words";

/** Seconds that are shown. */
const SPAN = 120;

interface Stats {
  read: string;
  cpu_stats: { cpu_usage: { total_usage: number } };
  memory_stats: { usage?: number };
  networks?: Record<string, { rx_bytes: number; tx_bytes: number }>;
  blkio_stats?: { io_service_bytes_recursive?: { op: string; value: number }[] | null };
}

interface Sample {
  at: number;
  cpu: number;
  memory: number;
  received: number | undefined;
  sent: number | undefined;
  disk: number | undefined;
}

interface Point extends Sample {
  cpuPercent: number;
  receivedRate: number | undefined;
  sentRate: number | undefined;
  diskRate: number | undefined;
}

function sample(stats: Stats): Sample {
  const cards = Object.values(stats.networks ?? {});
  const sum = (pick: (card: { rx_bytes: number; tx_bytes: number }) => number) =>
    cards.length ? cards.reduce((total, card) => total + pick(card), 0) : undefined;
  return {
    at: Date.parse(stats.read),
    cpu: stats.cpu_stats.cpu_usage.total_usage,
    memory: stats.memory_stats.usage ?? 0,
    received: sum((card) => card.rx_bytes),
    sent: sum((card) => card.tx_bytes),
    disk: stats.blkio_stats?.io_service_bytes_recursive?.reduce((total, { value }) => total + value, 0),
  };
}

function point(before: Sample, now: Sample): Point | undefined {
  const seconds = (now.at - before.at) / 1000;
  if (!(seconds > 0)) return undefined;
  const rate = (from?: number, to?: number) =>
    from === undefined || to === undefined ? undefined : Math.max(0, (to - from) / seconds);
  return {
    ...now,
    cpuPercent: Math.max(0, (now.cpu - before.cpu) / 1e7 / seconds),
    receivedRate: rate(before.received, now.received),
    sentRate: rate(before.sent, now.sent),
    diskRate: rate(before.disk, now.disk),
  };
}

export function ChartsTab({ workload }: { workload: Workload }) {
  const [points, setPoints] = useState<Point[]>([]);
  const [failure, setFailure] = useState("");
  const up = isUp(workload);
  const isSeen = useSeen();
  useEffect(() => {
    if (!up || !isSeen) return;
    const leave = new AbortController();
    const read = async () => {
      try {
        let before: Sample | undefined;
        const answer = await ask("GET", `/containers/${workload.id}/stats?stream=1`, undefined, leave.signal);
        for await (const stats of lines<Stats>(answer)) {
          const now = sample(stats);
          const next = before && point(before, now);
          before = now;
          if (next) setPoints((points) => [...points.slice(1 - SPAN), next]);
        }
      } catch (error) {
        if (!leave.signal.aborted) setFailure(why(error));
      }
    };
    void read();
    return () => leave.abort();
  }, [workload.id, up, isSeen]);
  if (!up) return <p class="quiet">It does not run: it takes nothing.</p>;
  if (failure) {
    return (
      <p class="failure" role="alert">
        {failure}
      </p>
    );
  }
  const rate = (value: number) => `${bytes(Math.round(value))}/s`;
  return (
    <section class="charts" aria-label="Charts">
      <Chart title="Processor" points={points} series={[["", ({ cpuPercent }) => cpuPercent]]} text={percent} least={10} />
      <Chart title="Memory" points={points} series={[["", ({ memory }) => memory]]} text={bytes} least={16 << 20} />
      <Chart
        title="Network"
        points={points}
        series={[
          ["in", ({ receivedRate }) => receivedRate],
          ["out", ({ sentRate }) => sentRate],
        ]}
        text={rate}
        least={1024}
      />
      <Chart title="Disks" points={points} series={[["", ({ diskRate }) => diskRate]]} text={rate} least={1024} />
    </section>
  );
}

interface ChartProps {
  title: string;
  points: Point[];
  /** What a line is called, and its value; nothing where that is not counted. */
  series: [string, (point: Point) => number | undefined][];
  text: (value: number) => string;
  /** The top of the chart is not below that. */
  least: number;
}

const [WIDTH, HEIGHT] = [360, 120];

function Chart({ title, points, series, text, least }: ChartProps) {
  const values = series.map(([, value]) => points.map(value));
  const all = values.flat().filter((value) => value !== undefined);
  const top = Math.max(least, ...all) * 1.1;
  const latest = points.at(-1);
  const now = series
    .map(([name, value]) => {
      const last = latest && value(latest);
      return last === undefined ? undefined : `${text(last)}${name ? ` ${name}` : ""}`;
    })
    .filter(Boolean)
    .join(", ");
  const most = all.length ? text(Math.max(...all)) : "–";
  const words = now || (points.length ? "not counted" : "waiting…");
  const line = (list: (number | undefined)[]) =>
    list
      .map((value, index) => [WIDTH - (list.length - 1 - index) * (WIDTH / (SPAN - 1)), value] as const)
      .filter(([, value]) => value !== undefined)
      .map(([x, value]) => `${x.toFixed(1)},${(HEIGHT - ((value ?? 0) / top) * HEIGHT).toFixed(1)}`)
      .join(" ");
  return (
    <figure>
      <figcaption>
        <span>{title}</span> <strong>{words}</strong>
      </figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={`${title} of the last two minutes: now ${words}, most ${most}`}>
        {[0.25, 0.5, 0.75].map((part) => (
          <line key={part} x1="0" x2={WIDTH} y1={HEIGHT * part} y2={HEIGHT * part} class="grid" />
        ))}
        {values.map((list, index) => (
          <polyline key={index} points={line(list)} class={`line line-${index}`} />
        ))}
      </svg>
      <p class="hint">
        most {most}
        {series.length > 1 && <span class="legend"> — {series.map(([name]) => name).join(" solid, ")} dashed</span>}
      </p>
    </figure>
  );
}
