// What a workload wrote, and what it writes.

import { useEffect, useRef, useState } from "preact/hooks";
import { ask, pieces, why, type Workload } from "./api";
import { useSeen } from "./live";
import { Button } from "./ui";

/** Lines that are asked for at first. */
const TAIL = 1000;
/** Pieces that are kept on the page: the oldest go. */
const KEPT = 5000;
// Colours and movements mean nothing outside of a terminal.
const CONTROL = /\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]/g;

export function LogsTab({ workload }: { workload: Workload }) {
  const place = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  const [stays, setStays] = useState(true);
  const [failure, setFailure] = useState("");
  const [isEmpty, setIsEmpty] = useState(true);
  const isSeen = useSeen();
  useEffect(() => {
    if (!isSeen) return;
    place.current?.replaceChildren();
    const leave = new AbortController();
    const decoders = [new TextDecoder(), new TextDecoder()] as const;
    const show = (isError: boolean, bytes: Uint8Array) => {
      const log = place.current;
      if (!log) return;
      const text = decoders[isError ? 1 : 0].decode(bytes, { stream: true }).replace(CONTROL, "");
      const piece = document.createElement("span");
      if (isError) piece.className = "stderr";
      piece.textContent = text;
      log.append(piece);
      while (log.childNodes.length > KEPT) log.firstChild?.remove();
      if (follows.current) log.scrollTop = log.scrollHeight;
    };
    const read = async () => {
      try {
        const path = `/containers/${workload.id}/logs?stdout=1&stderr=1&follow=1&tail=${TAIL}`;
        for await (const { isError, bytes } of pieces(await ask("GET", path, undefined, leave.signal))) {
          setIsEmpty(false);
          show(isError, bytes);
        }
      } catch (error) {
        if (!leave.signal.aborted) setFailure(why(error));
      }
    };
    void read();
    return () => leave.abort();
  }, [workload.id, isSeen]);
  const follow = (value: boolean) => {
    follows.current = value;
    setStays(value);
    const log = place.current;
    if (value && log) log.scrollTop = log.scrollHeight;
  };
  return (
    <section aria-label="Log">
      <div class="bar">
        <label class="check">
          <input type="checkbox" checked={stays} onChange={(event) => follow(event.currentTarget.checked)} /> Stay at the end
        </label>
        <Button act={() => navigator.clipboard?.writeText(place.current?.textContent ?? "")}>Copy</Button>
        <a href={`/containers/${workload.id}/logs?stdout=1&stderr=1&timestamps=1`} download={`${workload.name}.log`}>
          Download
        </a>
      </div>
      {failure && (
        <p class="failure" role="alert">
          {failure}
        </p>
      )}
      {isEmpty && !failure && <p class="quiet">It has written nothing yet.</p>}
      <pre ref={place} class="log" role="log" aria-label={`What ${workload.name} writes`} tabIndex={0} />
    </section>
  );
}
