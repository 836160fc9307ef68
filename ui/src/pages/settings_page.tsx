// Settings: who you are, users, tokens, webhooks, trust and storage, and how this page shows times and colours.
import { useState, type ReactNode } from "react";
import { useApi, useSend } from "../api/client";
import type { Me, ShownToken, ShownUser, ShownWebhook, Storage } from "../api/schema";
import { Badge, Card, Command, Confirm, Empty, Head, Loaded, shell, Time, useTitle } from "../components/basics";
import { Choose, Facts, Table } from "../components/table";
import { useTheme } from "../components/theme";
import { bytes, count, useZone, zoneName } from "../format";

const ROLES = ["viewer", "editor", "approver", "admin"] as const;

export function SettingsPage() {
  useTitle("Settings");
  const me = useApi<Me>("access/me");
  const admin = me.data?.role === "admin" || me.data?.login === false;
  return (
    <>
      <Head title="Settings" />
      <div className="grid" style={{ alignItems: "stretch" }}>
        <Card title="You" span="c6">
          <Loaded of={me} lines={2}>
            {(found) => (
              <Facts
                of={[
                  ["Name", found.actor],
                  ["Role", <><span className="tag accent">{found.role}</span> in project {found.project}</>],
                  ["Login", found.login ? "required" : "not required: this server is reachable from this machine only"],
                ]}
              />
            )}
          </Loaded>
        </Card>
        <Appearance />
        {me.data && <Tokens me={me.data} />}
        {admin && me.data && <Users project={me.data.project} />}
        {admin && <Webhooks />}
        {admin && <StorageAndTrust />}
      </div>
    </>
  );
}

function Appearance() {
  const [theme, setTheme] = useTheme();
  const [zone, setZone] = useZone();
  return (
    <Card title="This page" span="c6">
      <div className="stack">
        <div className="row" role="group" aria-label="Colours">
          {(["light", "dark"] as const).map((one) => (
            <button key={one} type="button" className={`button ${theme === one ? "primary" : ""}`} aria-pressed={theme === one} onClick={() => setTheme(one)}>
              {one === "light" ? "Light" : "Dark"}
            </button>
          ))}
        </div>
        <div className="row" role="group" aria-label="Time zone">
          {(["utc", "local"] as const).map((one) => (
            <button key={one} type="button" className={`button ${zone === one ? "primary" : ""}`} aria-pressed={zone === one} onClick={() => setZone(one)}>
              {one === "utc" ? "Times in UTC" : `Times of this device (${zoneName("local")})`}
            </button>
          ))}
        </div>
      </div>
    </Card>
  );
}

/** A secret that the server sends once. */
function Secret({ what, value, close }: { what: string; value: string; close: () => void }) {
  return (
    <div className="notice" role="status">
      <span>
        <b>{what}.</b> Save it: it is not shown again.
      </span>
      <Command label={`Copy: ${what}`}>{value}</Command>
      <button type="button" className="button small" onClick={close}>
        Hide
      </button>
    </div>
  );
}

function Field({ label, value, change, type = "text" }: { label: string; value: string; change: (next: string) => void; type?: string }) {
  return (
    <label className="field">
      <span>{label}</span>
      <input className="input" type={type} value={value} maxLength={600} onChange={(event) => change(event.target.value)} />
    </label>
  );
}

function Remove({ label, title, explain, command, path, role }: { label: string; title: string; explain: ReactNode; command: string; path: string; role: "viewer" | "admin" }) {
  const send = useSend();
  return <Confirm role={role} small danger withoutReason label={label} title={title} explain={explain} command={() => command} act={() => send(path, "DELETE")} />;
}

function Tokens({ me }: { me: Me }) {
  const found = useApi<ShownToken[]>("access/tokens", ["token"]);
  const send = useSend();
  const [name, setName] = useState("");
  const [days, setDays] = useState("90");
  const [secret, setSecret] = useState<string | null>(null);
  const add = async () => {
    const lifetime_s = days === "" ? null : Number(days) * 86_400;
    const made = await send<ShownToken>("access/tokens", "POST", { name: name.trim(), lifetime_s });
    setSecret(made.secret ?? null);
    setName("");
  };
  // Without a login the request has no user whom the token could belong to.
  const side = me.login ? (
    <Confirm role="viewer" withoutReason label="Create a token" title="Create a token" ready={name.trim() !== ""} explain="A program that sends it acts in your name, with your rights." command={() => `everloop tokens create ${shell(name.trim() || "NAME")} --user ${shell(me.actor.replace(/^user:/, ""))}${days ? ` --expires ${days}d` : ""}`} act={add}>
      <Field label="Name" value={name} change={setName} />
      <Choose label="Valid for" value={days} options={[["1", "a day"], ["30", "30 days"], ["90", "90 days"], ["365", "a year"], ["", "ever"]]} choose={setDays} />
    </Confirm>
  ) : (
    <Command>everloop tokens create NAME --user USER</Command>
  );
  return (
    <Card title={me.login ? "Tokens" : "Tokens of users"} span="c6" side={side}>
      {secret && <Secret what="The new token" value={secret} close={() => setSecret(null)} />}
      <Loaded of={found} lines={2}>
        {(tokens) => (
          <Table
            rows={tokens}
            label="Tokens"
            rowKey={(token) => token.name}
            height="20rem"
            empty={<Empty title="No tokens">A token lets a program act in your name, with the rights that you give it.</Empty>}
            columns={[
              {
                title: "Name",
                cell: (token) => (
                  <>
                    {token.name} <span className="mono small soft">{token.prefix}…</span>
                  </>
                ),
              },
              { title: "State", cell: (token) => (token.revoked_at ? <Badge state="stopped">revoked</Badge> : <Badge state="ok">active</Badge>) },
              { title: "Last used", cell: (token) => <Time at={token.used_at} /> },
              { title: "Expires", cell: (token) => <Time at={token.expires_at} /> },
              { title: "", cell: (token) => !token.revoked_at && <Remove role="viewer" label="Revoke" title={`Revoke the token '${token.name}'?`} explain="Programs that use it are refused from now on." command={`everloop tokens revoke ${shell(token.name)}`} path={`access/tokens/${encodeURIComponent(token.name)}`} /> },
            ]}
          />
        )}
      </Loaded>
    </Card>
  );
}

const inWords = (roles: Record<string, string>): string => Object.entries(roles).map(([project, role]) => `${role} in ${project === "*" ? "every project" : project}`).join(", ");

function Users({ project }: { project: string }) {
  const found = useApi<ShownUser[]>("access/users", ["user"]);
  const send = useSend();
  const [name, setName] = useState("");
  const [role, setRole] = useState<string>("viewer");
  const [where, setWhere] = useState("*");
  const [secret, setSecret] = useState<{ name: string; password: string } | null>(null);
  const roles = { [where]: role };
  const option = where === "*" ? role : `${where}=${role}`;
  const choices = (
    <>
      <Choose label="Role" value={role} options={ROLES} choose={setRole} />
      <Choose label="In" value={where} options={[["*", "every project"], [project, project]]} choose={setWhere} />
    </>
  );
  const add = async () => {
    const made = await send<ShownUser>("access/users", "POST", { name: name.trim(), roles });
    if (made.password) setSecret({ name: made.name, password: made.password });
    setName("");
  };
  return (
    <Card
      title="Users"
      span="c6"
      side={
        <Confirm role="admin" withoutReason label="Add a user" title="Add a user" ready={name.trim() !== ""} explain="A password is generated and shown once. After its next restart, a server that has users requires a login." command={() => `everloop users add ${shell(name.trim() || "NAME")} --role ${shell(option)}`} act={add}>
          <Field label="Name" value={name} change={setName} />
          {choices}
        </Confirm>
      }
    >
      {secret && <Secret what={`The password of ${secret.name}`} value={secret.password} close={() => setSecret(null)} />}
      <Loaded of={found} lines={2}>
        {(users) => (
          <Table
            rows={users}
            label="Users"
            rowKey={(user) => user.name}
            height="20rem"
            empty={<Empty title="No users">Without users, this server listens on this machine only.</Empty>}
            columns={[
              { title: "Name", cell: (user) => user.name },
              { title: "Roles", cell: (user) => inWords(user.roles) },
              {
                title: "",
                cell: (user) => (
                  <span className="row">
                    <Confirm role="admin" small withoutReason label="Change role" title={`Change the role of ${user.name}?`} explain="The new role replaces all roles that the user has." command={() => `everloop users role ${shell(user.name)} --role ${shell(option)}`} act={() => send(`access/users/${encodeURIComponent(user.name)}/roles`, "PUT", { roles })}>
                      {choices}
                    </Confirm>
                    <Remove role="admin" label="Remove" title={`Remove ${user.name}?`} explain="Their password and tokens stop working." command={`everloop users rm ${shell(user.name)}`} path={`access/users/${encodeURIComponent(user.name)}`} />
                  </span>
                ),
              },
            ]}
          />
        )}
      </Loaded>
    </Card>
  );
}

function Webhooks() {
  const found = useApi<ShownWebhook[]>("webhooks", ["webhook"]);
  const send = useSend();
  const [name, setName] = useState("");
  const [address, setAddress] = useState("");
  const [secret, setSecret] = useState<string | null>(null);
  const [tested, setTested] = useState("");
  const add = async () => {
    const made = await send<ShownWebhook>("webhooks", "POST", { name: name.trim(), url: address.trim() });
    setSecret(made.secret ?? null);
    setName("");
    setAddress("");
  };
  return (
    <Card
      title="Webhooks"
      span="c6"
      side={
        <Confirm role="admin" withoutReason label="Add a webhook" title="Add a webhook" ready={name.trim() !== "" && address.trim() !== ""} explain="The URL receives every event of this project, signed with a secret that is shown once." command={() => `everloop webhooks add ${shell(name.trim() || "NAME")} ${shell(address.trim() || "URL")}`} act={add}>
          <Field label="Name" value={name} change={setName} />
          <Field label="URL" value={address} change={setAddress} type="url" />
        </Confirm>
      }
    >
      {secret && <Secret what="The secret that signs its messages" value={secret} close={() => setSecret(null)} />}
      {tested && (
        <p role="status" className="small">
          {tested}
        </p>
      )}
      <Loaded of={found} lines={2}>
        {(hooks) => (
          <Table
            rows={hooks}
            label="Webhooks"
            rowKey={(hook) => hook.id}
            height="20rem"
            empty={<Empty title="No webhooks">A webhook is a URL that receives events, such as a new champion.</Empty>}
            columns={[
              { title: "Name", cell: (hook) => hook.name },
              { title: "URL", className: "mono small", cell: (hook) => hook.url },
              { title: "State", cell: (hook) => (hook.active ? <Badge state={hook.failures > 0 ? "warning" : "ok"}>{hook.failures > 0 ? `${count(hook.failures)} failures` : "active"}</Badge> : <Badge state="stopped" />) },
              {
                title: "",
                cell: (hook) => (
                  <span className="row">
                    <Confirm role="admin" small withoutReason label="Test" title={`Send a test message to ${hook.name}?`} explain="The answer of the URL is shown." command={() => `everloop webhooks test ${shell(hook.name)}`} act={async () => setTested(`${hook.name} answered ${(await send<{ status: number }>(`webhooks/${encodeURIComponent(hook.name)}/test`, "POST")).status}.`)} />
                    <Remove role="admin" label="Remove" title={`Remove the webhook ${hook.name}?`} explain="It receives no more events." command={`everloop webhooks rm ${shell(hook.name)}`} path={`webhooks/${encodeURIComponent(hook.name)}`} />
                  </span>
                ),
              },
            ]}
          />
        )}
      </Loaded>
    </Card>
  );
}

function StorageAndTrust() {
  const found = useApi<Storage>("views/storage");
  return (
    <>
      <Card title="Storage" span="c6" side={<Command>everloop verify</Command>}>
        <Loaded of={found} lines={4}>
          {(storage) => (
            <Table
              rows={storage.parts}
              label="Storage"
              rowKey={(part) => part.name}
              columns={[
                { title: "Part", cell: (part) => part.name },
                { title: "Where", className: "mono small pre", cell: (part) => part.url },
                { title: "Size", number: true, cell: (part) => (part.size_bytes === null ? <span className="soft">not measured</span> : `${part.complete ? "" : "more than "}${bytes(part.size_bytes)}`) },
                { title: "Files", number: true, cell: (part) => count(part.files) },
              ]}
            />
          )}
        </Loaded>
      </Card>
      <Card title="Trust" span="c6" side={<Command>everloop trust add KEY --name OWNER</Command>}>
        <p className="soft small" style={{ marginBottom: "0.6rem" }}>Models in formats that contain code are loaded only if one of these keys has signed them. Keys are changed on the machine itself, never from here.</p>
        <Loaded of={found} lines={3}>
          {(storage) =>
            storage.trust_problem ? (
              <p className="error">{storage.trust_problem}</p>
            ) : (
              <Table
                rows={storage.trusted}
                label="Trusted keys and digests"
                rowKey={(one) => one.id}
                empty={<Empty title="Nothing is trusted yet">This machine's own key is created with its first package.</Empty>}
                columns={[
                  { title: "Kind", cell: (one) => one.kind },
                  { title: "Name", cell: (one) => one.name || "–" },
                  { title: "Id", className: "mono small pre", cell: (one) => one.id },
                ]}
              />
            )
          }
        </Loaded>
      </Card>
    </>
  );
}
