// Networks and volumes: lists.

import { get } from "./api";
import { Empty, Table, Title, useAsked, Waiting } from "./ui";

interface Network {
  Name: string;
  Id: string;
  Driver: string;
  Internal: boolean;
  IPAM?: { Config?: { Subnet?: string }[] | null };
}

export function NetworksPage() {
  const { value, failure } = useAsked(() => get<Network[]>("/networks"));
  return (
    <>
      <Title text="Networks" />
      {!value ? (
        <Waiting failure={failure} />
      ) : value.length === 0 ? (
        <Empty text="There is no network." />
      ) : (
        <Table<Network>
          caption="Networks"
          rows={value}
          id={({ Id }) => Id}
          columns={[
            { title: "Name", cell: ({ Name }) => Name },
            { title: "Driver", cell: ({ Driver }) => Driver },
            { title: "Addresses", cell: ({ IPAM }) => (IPAM?.Config ?? []).map(({ Subnet }) => Subnet).join(", ") || "–" },
            { title: "Reaches", cell: ({ Internal }) => (Internal ? "itself alone" : "beyond this host") },
          ]}
        />
      )}
    </>
  );
}

interface Volume {
  Name: string;
  Driver: string;
  Mountpoint: string;
}

export function VolumesPage() {
  const { value, failure } = useAsked(async () => (await get<{ Volumes: Volume[] | null }>("/volumes")).Volumes ?? []);
  return (
    <>
      <Title text="Volumes" />
      {!value ? (
        <Waiting failure={failure} />
      ) : value.length === 0 ? (
        <Empty text="There is no volume. Folders of this host can be shown to workloads without one: -v FOLDER:PLACE" />
      ) : (
        <Table<Volume>
          caption="Volumes"
          rows={value}
          id={({ Name }) => Name}
          columns={[
            { title: "Name", cell: ({ Name }) => Name },
            { title: "Driver", cell: ({ Driver }) => Driver },
            { title: "Place", cell: ({ Mountpoint }) => <code>{Mountpoint}</code> },
          ]}
        />
      )}
    </>
  );
}
