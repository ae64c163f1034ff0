// A new workload from an image, in a container or in a microVM.

import { useEffect, useState } from "preact/hooks";
import { ApiError, get, post, start, type Image, type Isolation } from "./api";
import { refresh } from "./live";
import { pull, type Progress } from "./pull";
import { Dialog, Field, say } from "./ui";
import { words } from "./words";

const lines = (text: FormDataEntryValue | null) =>
  String(text ?? "")
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);

/** `[IP:]HOSTPORT:PORT[/PROTOCOL]` a line, in docker's words. */
function bindings(text: FormDataEntryValue | null) {
  const ports: Record<string, { HostIp: string; HostPort: string }[]> = {};
  for (const line of lines(text)) {
    const parts = line.split(":");
    const inner = parts.pop() ?? "";
    const HostPort = parts.pop() ?? "";
    if (!/^\d+(\/(tcp|udp))?$/.test(inner) || !/^\d*$/.test(HostPort)) {
      throw new Error(`port ${line}: it is HOSTPORT:PORT, 8080:80 for one`);
    }
    const key = inner.includes("/") ? inner : `${inner}/tcp`;
    (ports[key] ??= []).push({ HostIp: parts.join(":"), HostPort });
  }
  return ports;
}

function described(form: FormData) {
  const number = (name: string) => Number(form.get(name) || 0);
  const ports = bindings(form.get("ports"));
  const network = String(form.get("network") ?? "");
  const command = words(String(form.get("command") ?? ""));
  const tty = form.get("tty") !== null;
  return {
    Image: String(form.get("image")).trim(),
    ...(command.length ? { Cmd: command } : {}),
    Env: lines(form.get("env")),
    Tty: tty,
    OpenStdin: tty,
    ExposedPorts: Object.fromEntries(Object.keys(ports).map((port) => [port, {}])),
    HostConfig: {
      Runtime: form.get("isolation") === "vm" ? "strata-vm" : "strata",
      Memory: Math.round(number("memory") * 1024 * 1024),
      NanoCpus: Math.round(number("cpus") * 1e9),
      PortBindings: ports,
      Binds: lines(form.get("binds")),
      AutoRemove: form.get("remove") !== null,
      ...(network ? { NetworkMode: network } : {}),
    },
  };
}

/** Makes it, and brings its image first where that is not here. */
async function create(form: FormData, told: (progress: Progress) => void) {
  const body = described(form);
  const name = String(form.get("name") ?? "").trim();
  const path = `/containers/create${name ? `?name=${encodeURIComponent(name)}` : ""}`;
  const make = () => post<{ Id: string }>(path, body);
  let made;
  try {
    made = await make();
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 404 && /no such image/i.test(error.message))) throw error;
    await pull(body.Image, told);
    made = await make();
  }
  if (!made) throw new Error("the server said nothing about what it made");
  await refresh();
  await start(made.Id);
  return made.Id;
}

export function CreateDialog({ image, close }: { image?: string; close: () => void }) {
  const [isolation, setIsolation] = useState<Isolation>("container");
  const [images, setImages] = useState<string[]>([]);
  const [networks, setNetworks] = useState<string[]>([]);
  const [progress, setProgress] = useState<Progress>();
  useEffect(() => {
    const names = (list: Image[]) => setImages(list.flatMap(({ RepoTags }) => RepoTags ?? []));
    get<Image[]>("/images/json").then(names, () => undefined);
    const own = (list: { Name: string }[]) => setNetworks(list.map(({ Name }) => Name));
    get<{ Name: string }[]>("/networks").then(own, () => undefined);
  }, []);
  const choice = (value: Isolation, title: string, text: string) => (
    <label class="choice">
      <input type="radio" name="isolation" value={value} checked={isolation === value} onChange={() => setIsolation(value)} />
      <span>
        <strong>{title}</strong>
        <span class="below">{text}</span>
      </span>
    </label>
  );
  return (
    <Dialog
      title="Create a workload"
      verb="Create and start"
      close={close}
      act={async (form) => {
        try {
          const id = await create(form, setProgress);
          say("The workload is started");
          location.hash = `#/workloads/${id}`;
        } finally {
          setProgress(undefined);
          await refresh();
        }
      }}
    >
      <Field label="Image" hint="One that is not here is pulled from its registry.">
        {(id, hint) => (
          <>
            <input id={id} name="image" required defaultValue={image ?? ""} list={`${id}-list`} aria-describedby={hint} autocomplete="off" spellcheck={false} />
            <datalist id={`${id}-list`}>
              {images.map((name) => (
                <option key={name} value={name} />
              ))}
            </datalist>
          </>
        )}
      </Field>
      <fieldset>
        <legend>Isolation</legend>
        <div class="choices">
          {choice("container", "Container", "Shares the kernel of this host")}
          {choice("vm", "microVM", "A machine with a kernel of its own")}
        </div>
      </fieldset>
      <Field label="Command" hint="Instead of the image's own.">
        {(id, hint) => <input id={id} name="command" aria-describedby={hint} autocomplete="off" spellcheck={false} />}
      </Field>
      <Field label="Name" hint="One is made up otherwise.">
        {(id, hint) => (
          <input id={id} name="name" pattern="[a-zA-Z0-9][a-zA-Z0-9_.\-]*" aria-describedby={hint} autocomplete="off" spellcheck={false} />
        )}
      </Field>
      <details>
        <summary>More</summary>
        <div class="pair">
          <Field label="Memory, MiB">{(id) => <input id={id} name="memory" type="number" min="16" step="1" />}</Field>
          <Field label="Processors">{(id) => <input id={id} name="cpus" type="number" min="0.1" max="64" step="0.1" />}</Field>
        </div>
        <Field label="Environment" hint="NAME=value, one a line.">
          {(id, hint) => <textarea id={id} name="env" rows={2} aria-describedby={hint} spellcheck={false} />}
        </Field>
        <Field label="Published ports" hint="HOSTPORT:PORT, one a line.">
          {(id, hint) => <textarea id={id} name="ports" rows={2} aria-describedby={hint} spellcheck={false} />}
        </Field>
        <Field label="Folders and volumes" hint="FOLDER:PLACE or VOLUME:PLACE, one a line; :ro behind it keeps it from being changed.">
          {(id, hint) => <textarea id={id} name="binds" rows={2} aria-describedby={hint} spellcheck={false} />}
        </Field>
        <Field label="Network">
          {(id) => (
            <select id={id} name="network">
              <option value="">Default</option>
              {networks.map((name) => (
                <option key={name}>{name}</option>
              ))}
            </select>
          )}
        </Field>
        <label class="check">
          <input type="checkbox" name="tty" /> Give it a terminal
        </label>{" "}
        <label class="check">
          <input type="checkbox" name="remove" /> Remove it when it has ended
        </label>
      </details>
      {progress && (
        <p role="status" class="quiet">
          {progress.text}
        </p>
      )}
    </Dialog>
  );
}
