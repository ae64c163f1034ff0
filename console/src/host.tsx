// What this host offers, and what is kept to start from.

import { ask, get } from "./api";
import { attempt, Button, Empty, say, Table, Title, useAsked, Waiting } from "./ui";
import { bytes } from "./words";

interface Finding {
  layer: string;
  item: string;
  state: "ok" | "limited" | "missing";
  detail: string;
  advice?: string;
}

interface Template {
  id: string;
  kernel: string | null;
  cpu: string | null;
  memory_bytes: number | null;
  size_bytes: number;
  broken: string | null;
}

const TONES = { ok: "good", limited: "busy", missing: "bad" };

export function HostPage() {
  const check = useAsked(() => get<{ microvms: boolean; findings: Finding[] }>("/strata/v1/check"));
  const version = useAsked(() => get<{ Version: string; KernelVersion: string }>("/version"));
  const templates = useAsked(() => get<Template[]>("/strata/v1/templates"));
  return (
    <>
      <Title text="Host" />
      <p class="facts">
        {version.value && <span>Strata {version.value.Version}</span>}
        {version.value && <span>Linux {version.value.KernelVersion}</span>}
        {check.value && (
          <span class={`status ${check.value.microvms ? "good" : "bad"}`}>
            {check.value.microvms ? "microVMs can run here" : "microVMs cannot run here yet"}
          </span>
        )}
        <a href="/metrics">Metrics</a> <a href="licenses.txt">Licences</a>
      </p>
      <h2>What it offers</h2>
      {!check.value ? (
        <Waiting failure={check.failure} />
      ) : (
        <Table<Finding>
          caption="What this host offers"
          rows={check.value.findings}
          id={({ layer, item }) => `${layer}/${item}`}
          columns={[
            { title: "Item", cell: ({ item }) => item },
            { title: "Layer", cell: ({ layer }) => layer },
            { title: "State", cell: ({ state }) => <span class={`status ${TONES[state]}`}>{state}</span> },
            {
              title: "Detail",
              cell: ({ detail, advice }) => (
                <>
                  {detail}
                  {advice && <span class="below">{advice}</span>}
                </>
              ),
            },
          ]}
        />
      )}
      <h2>Templates</h2>
      {!templates.value ? (
        <Waiting failure={templates.failure} />
      ) : templates.value.length === 0 ? (
        <Empty text="There is no template. The first microVM makes one, from which the next start in a moment." />
      ) : (
        <Table<Template>
          caption="Templates"
          rows={templates.value}
          id={({ id }) => id}
          columns={[
            { title: "Id", cell: ({ id }) => <code>{id.slice(0, 16)}</code> },
            { title: "Kernel", cell: ({ kernel, broken }) => broken ?? kernel ?? "–" },
            { title: "Memory", kind: "number", cell: ({ memory_bytes }) => bytes(memory_bytes) },
            { title: "On disk", kind: "number", cell: ({ size_bytes }) => bytes(size_bytes) },
            {
              title: "Actions",
              kind: "actions",
              cell: ({ id }) => (
                <div class="actions">
                  <Button
                    tone="danger"
                    aria-label={`Remove template ${id.slice(0, 16)}`}
                    act={async () => {
                      if (await attempt("Remove the template", () => ask("DELETE", `/strata/v1/templates/${id}`))) {
                        say("The template is removed; the next microVM makes one anew");
                      }
                      await templates.again();
                    }}
                  >
                    Remove
                  </Button>
                </div>
              ),
            },
          ]}
        />
      )}
    </>
  );
}
