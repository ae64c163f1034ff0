// The frame around all pages, and which page an address means. Addresses stand behind `#`, so that any of them can be opened anew.

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { HostPage } from "./host";
import { ImagesPage } from "./images";
import { useLive } from "./live";
import { NetworksPage, VolumesPage } from "./networks";
import { SnapshotsPage } from "./snapshots";
import { Empty, Notices, Title } from "./ui";
import { WorkloadPage } from "./workload";
import { WorkloadsPage } from "./workloads";

const PAGES: [string, string][] = [
  ["workloads", "Workloads"],
  ["images", "Images"],
  ["snapshots", "Snapshots"],
  ["networks", "Networks"],
  ["volumes", "Volumes"],
  ["host", "Host"],
];

function usePath(): string[] {
  const read = () => location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);
  const [path, setPath] = useState(read);
  useEffect(() => {
    const change = () => setPath(read());
    addEventListener("hashchange", change);
    return () => removeEventListener("hashchange", change);
  }, []);
  return path;
}

function page(path: string[]): ComponentChildren {
  const [first = "workloads", id, tab = "overview"] = path;
  switch (first) {
    case "workloads":
      return id ? <WorkloadPage key={id} id={id} tab={tab} /> : <WorkloadsPage />;
    case "images":
      return <ImagesPage />;
    case "snapshots":
      return <SnapshotsPage />;
    case "networks":
      return <NetworksPage />;
    case "volumes":
      return <VolumesPage />;
    case "host":
      return <HostPage />;
    default:
      return (
        <>
          <Title text="Not found" />
          <Empty text="There is no such page." />
        </>
      );
  }
}

export function App() {
  const path = usePath();
  const { failure } = useLive();
  const skip = (event: Event) => {
    event.preventDefault();
    document.querySelector<HTMLElement>("main h1")?.focus();
  };
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <header>
        <a class="brand" href="#/workloads">
          <img src="icon.svg" alt="" width="24" height="24" />
          Strata
        </a>
        <nav aria-label="Pages">
          <ul>
            {PAGES.map(([name, title]) => (
              <li key={name}>
                <a href={`#/${name}`} aria-current={(path[0] ?? "workloads") === name ? "page" : undefined}>
                  {title}
                </a>
              </li>
            ))}
          </ul>
        </nav>
      </header>
      <main id="main">
        {failure && (
          <p class="failure" role="alert">
            {failure}. What is shown may be old.
          </p>
        )}
        {page(path)}
      </main>
      <Notices />
    </>
  );
}
