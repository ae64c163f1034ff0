// The few parts that all pages are made of.

import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { why } from "./api";

type Tone = "info" | "error";
interface Notice {
  id: number;
  tone: Tone;
  text: string;
}

let notices: Notice[] = [];
let nextId = 1;
const watchers = new Set<() => void>();

function changed(next: Notice[]) {
  notices = next;
  watchers.forEach((watch) => watch());
}

/** Says something, and has it read aloud. Errors stay until they are dismissed. */
export function say(text: string, tone: Tone = "info") {
  const id = nextId++;
  changed([...notices.slice(-4), { id, tone, text }]);
  if (tone === "info") setTimeout(() => changed(notices.filter((notice) => notice.id !== id)), 6000);
}

/** Does something that may fail, and says so then. */
export async function attempt(what: string, act: () => Promise<unknown>): Promise<boolean> {
  try {
    await act();
    return true;
  } catch (error) {
    say(`${what}: ${why(error)}`, "error");
    return false;
  }
}

export function Notices() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const watch = () => redraw((count) => count + 1);
    watchers.add(watch);
    return () => void watchers.delete(watch);
  }, []);
  const of = (tone: Tone) =>
    notices
      .filter((notice) => notice.tone === tone)
      .map(({ id, text }) => (
        <div key={id} class={`notice ${tone}`}>
          <span>{text}</span>
          <button
            type="button"
            class="plain"
            aria-label="Dismiss this message"
            onClick={() => changed(notices.filter((notice) => notice.id !== id))}
          >
            ✕
          </button>
        </div>
      ));
  return (
    <div class="notices">
      <div role="status" aria-live="polite">
        {of("info")}
      </div>
      <div role="alert">{of("error")}</div>
    </div>
  );
}

/** The heading of a page: it has the focus when the page is new, so that a screen reader begins there. */
export function Title({ text, children }: { text: string; children?: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${text} – Strata`;
    heading.current?.focus();
  }, [text]);
  return (
    <div class="title">
      <h1 ref={heading} tabIndex={-1}>
        {text}
      </h1>
      <div class="actions">{children}</div>
    </div>
  );
}

interface ButtonProps extends Omit<JSX.ButtonHTMLAttributes, "onClick"> {
  /** A promise keeps it from being pressed again until it is kept. */
  act?: () => unknown;
  tone?: "main" | "danger" | "plain";
}

export function Button({ act, tone, children, disabled, ...rest }: ButtonProps) {
  const [busy, setBusy] = useState(false);
  const press = async () => {
    setBusy(true);
    try {
      await act?.();
    } finally {
      setBusy(false);
    }
  };
  return (
    <button type={act ? "button" : "submit"} {...rest} class={tone} disabled={disabled || busy} aria-busy={busy} onClick={act && press}>
      {children}
    </button>
  );
}

export function Empty({ text, children }: { text: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p>{text}</p>
      {children}
    </div>
  );
}

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ComponentChildren;
  /** A column of numbers, or of buttons. */
  kind?: "number" | "actions";
}

/** A table; where there is no room for one, a card for each row. */
export function Table<Row>(props: { caption: string; columns: Column<Row>[]; rows: Row[]; id: (row: Row) => string }) {
  const { caption, columns, rows, id } = props;
  // The roles are said, for a style that makes cards of rows takes them away.
  return (
    <table role="table">
      <caption class="unseen">{caption}</caption>
      <thead role="rowgroup">
        <tr role="row">
          {columns.map(({ title, kind }) => (
            <th key={title} scope="col" role="columnheader" class={kind}>
              {kind === "actions" ? <span class="unseen">{title}</span> : title}
            </th>
          ))}
        </tr>
      </thead>
      <tbody role="rowgroup">
        {rows.map((row) => (
          <tr key={id(row)} role="row" data-row={id(row)}>
            {columns.map(({ title, cell, kind }, index) =>
              index === 0 ? (
                <th key={title} scope="row" role="rowheader">
                  {cell(row)}
                </th>
              ) : (
                <td key={title} role="cell" class={kind} data-title={title}>
                  {cell(row)}
                </td>
              ),
            )}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function Field(props: { label: string; hint?: string; children: (id: string, hint: string | undefined) => ComponentChildren }) {
  const id = useId();
  const hintId = props.hint ? `${id}-hint` : undefined;
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      {props.children(id, hintId)}
      {props.hint && (
        <p id={hintId} class="hint">
          {props.hint}
        </p>
      )}
    </div>
  );
}

interface DialogProps {
  title: string;
  /** The button that does it. */
  verb: string;
  danger?: boolean;
  /** What failed is shown here, and the dialog stays. */
  act: (form: FormData) => Promise<unknown>;
  close: () => void;
  children?: ComponentChildren;
}

/** A question in front of the page. The browser keeps the focus in it, and gives it back. */
export function Dialog({ title, verb, danger, act, close, children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState("");
  const titleId = useId();
  useEffect(() => dialog.current?.showModal(), []);
  const submit = async (event: JSX.TargetedSubmitEvent<HTMLFormElement>) => {
    event.preventDefault();
    setBusy(true);
    setFailure("");
    try {
      await act(new FormData(event.currentTarget));
      dialog.current?.close();
    } catch (error) {
      setFailure(why(error));
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby={titleId} onClose={close}>
      <form onSubmit={submit}>
        <h2 id={titleId}>{title}</h2>
        {children}
        <p class="failure" role="alert">
          {failure}
        </p>
        <div class="actions">
          <button type="button" onClick={() => dialog.current?.close()}>
            Cancel
          </button>
          <button type="submit" class={danger ? "danger" : "main"} disabled={busy} aria-busy={busy}>
            {busy ? "Working…" : verb}
          </button>
        </div>
      </form>
    </dialog>
  );
}

/** What a page asks for once, and again when `again` is called. */
export function useAsked<T>(ask: () => Promise<T>): { value: T | undefined; failure: string; again: () => Promise<void> } {
  const [value, setValue] = useState<T>();
  const [failure, setFailure] = useState("");
  const again = async () => {
    try {
      setValue(await ask());
      setFailure("");
    } catch (error) {
      setFailure(why(error));
    }
  };
  useEffect(() => void again(), []);
  return { value, failure, again };
}

/** What is shown until there is something, or instead of it. */
export function Waiting({ failure }: { failure: string }) {
  return failure ? (
    <p class="failure" role="alert">
      {failure}
    </p>
  ) : (
    <p class="quiet" role="status">
      Loading…
    </p>
  );
}
