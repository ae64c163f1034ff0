// The list of workloads, live.

import { useState } from "preact/hooks";
import type { Workload } from "./api";
import { CreateDialog } from "./create";
import { useLive } from "./live";
import { Actions, Kind, Status } from "./state";
import { Button, Empty, Table, Title, Waiting } from "./ui";
import { ago, bytes, percent } from "./words";

export function WorkloadsPage() {
  const { workloads, cpu, failure } = useLive();
  const [creates, setCreates] = useState(false);
  const create = (
    <Button tone="main" act={() => setCreates(true)}>
      Create a workload
    </Button>
  );
  return (
    <>
      <Title text="Workloads">{create}</Title>
      {creates && <CreateDialog close={() => setCreates(false)} />}
      {!workloads ? (
        <Waiting failure={failure} />
      ) : workloads.length === 0 ? (
        <Empty text="Nothing is here yet. A workload is an image that runs, in a container or in a microVM." />
      ) : (
        <Table<Workload>
          caption="Workloads"
          rows={workloads}
          id={(workload) => workload.name}
          columns={[
            {
              title: "Name",
              cell: ({ id, name, image }) => (
                <>
                  <a href={`#/workloads/${id}`}>{name}</a>
                  <span class="below">{image}</span>
                </>
              ),
            },
            { title: "State", cell: (workload) => <Status workload={workload} /> },
            { title: "Isolation", cell: (workload) => <Kind workload={workload} /> },
            { title: "CPU", kind: "number", cell: ({ id }) => percent(cpu.get(id)) },
            { title: "Memory", kind: "number", cell: ({ memory_bytes }) => bytes(memory_bytes) },
            { title: "Started", cell: ({ state, created_ms }) => ago(state.started_ms ?? created_ms) },
            { title: "Actions", kind: "actions", cell: (workload) => <Actions workload={workload} brief /> },
          ]}
        />
      )}
    </>
  );
}
