// Snapshots: machines at rest, from which any number go on.

import { useState } from "preact/hooks";
import { ask, get, post, type Snapshot, type Workload } from "./api";
import { refresh } from "./live";
import { attempt, Button, Dialog, Empty, Field, say, Table, Title, useAsked, Waiting } from "./ui";
import { ago, bytes } from "./words";

export function SnapshotDialog({ workload, close }: { workload: Workload; close: () => void }) {
  return (
    <Dialog
      title={`Save ${workload.name} to a snapshot`}
      verb="Save"
      close={close}
      act={async (form) => {
        const name = String(form.get("name")).trim();
        await post("/strata/v1/snapshots", { workload: workload.id, name, stop: form.get("stop") !== null });
        say(`${workload.name} is saved as ${name}`);
        await refresh();
      }}
    >
      <Field label="Snapshot's name" hint="One of this name is replaced.">
        {(id, hint) => (
          <input
            id={id}
            name="name"
            required
            pattern="[a-zA-Z0-9][a-zA-Z0-9_.\-]*"
            defaultValue={`${workload.name}-saved`}
            aria-describedby={hint}
            autocomplete="off"
            spellcheck={false}
          />
        )}
      </Field>
      <label class="check">
        <input type="checkbox" name="stop" /> End the workload when it is saved
      </label>
    </Dialog>
  );
}

const at = (name: string) => `/strata/v1/snapshots/${encodeURIComponent(name)}`;

export function SnapshotsPage() {
  const { value, failure, again } = useAsked(() => get<Snapshot[]>("/strata/v1/snapshots"));
  const [removes, setRemoves] = useState<Snapshot>();
  const restore = async (snapshot: Snapshot) => {
    await attempt(`Restore ${snapshot.name}`, async () => {
      const made = await post<{ name: string }>(`${at(snapshot.name)}/restore`, {});
      say(`${made?.name} goes on from ${snapshot.name}`);
    });
    await refresh();
  };
  return (
    <>
      <Title text="Snapshots" />
      {!value ? (
        <Waiting failure={failure} />
      ) : value.length === 0 ? (
        <Empty text="There is no snapshot. A microVM that runs can be saved to one from its own page." />
      ) : (
        <Table<Snapshot>
          caption="Snapshots"
          rows={value}
          id={({ name }) => name}
          columns={[
            { title: "Name", cell: ({ name }) => name },
            {
              title: "Command",
              cell: ({ command, broken }) => (broken ? <span class="failure">{broken}</span> : <code>{command.join(" ")}</code>),
            },
            { title: "Memory", kind: "number", cell: ({ memory_bytes }) => bytes(memory_bytes) },
            { title: "On disk", kind: "number", cell: ({ size_bytes }) => bytes(size_bytes) },
            { title: "Saved", cell: ({ created_ms }) => ago(created_ms) },
            {
              title: "Actions",
              kind: "actions",
              cell: (snapshot) => (
                <div class="actions">
                  <Button aria-label={`Restore ${snapshot.name}`} disabled={snapshot.broken !== null} act={() => restore(snapshot)}>
                    Restore
                  </Button>
                  <Button tone="danger" aria-label={`Remove ${snapshot.name}`} act={() => setRemoves(snapshot)}>
                    Remove
                  </Button>
                </div>
              ),
            },
          ]}
        />
      )}
      {removes && (
        <Dialog
          title={`Remove ${removes.name}?`}
          verb="Remove"
          danger
          close={() => setRemoves(undefined)}
          act={async () => {
            await ask("DELETE", at(removes.name));
            say(`${removes.name} is removed`);
            await again();
          }}
        >
          <p>Workloads that came from it run on.</p>
        </Dialog>
      )}
    </>
  );
}
