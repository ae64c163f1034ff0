// Images: what is here, and bringing more.

import { useState } from "preact/hooks";
import { ask, get, type Image } from "./api";
import { CreateDialog } from "./create";
import { pull, type Progress } from "./pull";
import { attempt, Button, Dialog, Empty, Field, say, Table, Title, useAsked, Waiting } from "./ui";
import { ago, bytes } from "./words";

interface Row {
  name: string;
  image: Image;
}

const short = (id: string) => id.replace("sha256:", "").slice(0, 12);

export function ImagesPage() {
  const { value, failure, again } = useAsked(() => get<Image[]>("/images/json"));
  const [progress, setProgress] = useState<Progress>();
  const [removes, setRemoves] = useState<Row>();
  const [runs, setRuns] = useState<string>();
  const rows = value?.flatMap((image) =>
    (image.RepoTags?.length ? image.RepoTags : [short(image.Id)]).map((name): Row => ({ name, image })),
  );
  const submit = async (event: Event) => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const name = String(new FormData(form).get("image")).trim();
    setProgress({ text: `Pulling ${name}…`, part: undefined });
    if (await attempt(`Pull ${name}`, () => pull(name, setProgress))) {
      say(`${name} is here`);
      form.reset();
    }
    setProgress(undefined);
    await again();
  };
  return (
    <>
      <Title text="Images" />
      <form class="row" onSubmit={submit}>
        <Field label="Pull an image">
          {(id) => <input id={id} name="image" required placeholder="debian:12" autocomplete="off" spellcheck={false} />}
        </Field>
        <button type="submit" class="main" disabled={progress !== undefined}>
          Pull
        </button>
      </form>
      {progress && (
        <div class="progress">
          <p role="status">{progress.text}</p>
          <progress aria-label="Pull" value={progress.part} max={1} />
        </div>
      )}
      {!rows ? (
        <Waiting failure={failure} />
      ) : rows.length === 0 ? (
        <Empty text="No image is here yet. Pull one, or make one: strata image bootstrap debian" />
      ) : (
        <Table<Row>
          caption="Images"
          rows={rows}
          id={({ name }) => name}
          columns={[
            { title: "Name", cell: ({ name }) => name },
            { title: "Id", cell: ({ image }) => <code>{short(image.Id)}</code> },
            { title: "Size", kind: "number", cell: ({ image }) => bytes(image.Size) },
            { title: "Made", cell: ({ image }) => ago(image.Created * 1000) },
            {
              title: "Actions",
              kind: "actions",
              cell: (row) => (
                <div class="actions">
                  <Button aria-label={`Run ${row.name}`} act={() => setRuns(row.name)}>
                    Run
                  </Button>
                  <Button tone="danger" aria-label={`Remove ${row.name}`} act={() => setRemoves(row)}>
                    Remove
                  </Button>
                </div>
              ),
            },
          ]}
        />
      )}
      {runs !== undefined && <CreateDialog image={runs} close={() => setRuns(undefined)} />}
      {removes && (
        <Dialog
          title={`Remove ${removes.name}?`}
          verb="Remove"
          danger
          close={() => setRemoves(undefined)}
          act={async () => {
            await ask("DELETE", `/images/${removes.name}`);
            say(`${removes.name} is removed`);
            await again();
          }}
        >
          <p>It can be pulled again, if its registry still has it.</p>
        </Dialog>
      )}
    </>
  );
}
