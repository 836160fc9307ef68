// Settings: who you are, users, tokens and webhooks, and how this page shows times and colours.
import { useApi } from "../api/client";
import type { Me, ShownToken, ShownUser, ShownWebhook } from "../api/schema";
import { Badge, Card, Command, Empty, Head, Loaded, Time, useTitle } from "../components/basics";
import { useTheme } from "../components/theme";
import { useZone, zoneName } from "../format";

export function SettingsPage() {
  useTitle("Settings");
  const me = useApi<Me>("access/me");
  const admin = me.data?.role === "admin" || me.data?.login === false;
  return (
    <>
      <Head title="Settings" />
      <div className="grid">
        <Card title="You" span="c6">
          <Loaded of={me} lines={2}>
            {(found) => (
              <dl className="facts">
                <dt>Name</dt>
                <dd>{found.actor}</dd>
                <dt>Role</dt>
                <dd>
                  <span className="tag accent">{found.role}</span> in project {found.project}
                </dd>
                <dt>Login</dt>
                <dd>{found.login ? "required" : "not required: this server is reachable from this machine only"}</dd>
              </dl>
            )}
          </Loaded>
        </Card>
        <Appearance />
        {me.data && <Tokens />}
        {admin && <Users />}
        {admin && <Webhooks />}
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
              {one === "utc" ? "Times in UTC" : `Times in ${zoneName("local")}`}
            </button>
          ))}
        </div>
      </div>
    </Card>
  );
}

function Tokens() {
  const found = useApi<ShownToken[]>("access/tokens", ["token"]);
  return (
    <Card title="Your tokens" span="c6" side={<Command>everloop tokens create NAME</Command>}>
      <Loaded of={found} lines={2}>
        {(tokens) =>
          tokens.length === 0 ? (
            <Empty title="No tokens">A token lets a program act in your name, with the rights that you give it.</Empty>
          ) : (
            <table>
              <tbody>
                {tokens.map((token) => (
                  <tr key={token.name}>
                    <td>
                      {token.name} <span className="mono small soft">{token.prefix}…</span>
                    </td>
                    <td>{token.revoked_at ? <Badge state="stopped">revoked</Badge> : <Badge state="ok">active</Badge>}</td>
                    <td className="small">last used: <Time at={token.used_at} /></td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Loaded>
    </Card>
  );
}

function Users() {
  const found = useApi<ShownUser[]>("access/users", ["user"]);
  return (
    <Card title="Users" span="c6" side={<Command>everloop users add NAME --role viewer</Command>}>
      <Loaded of={found} lines={2}>
        {(users) =>
          users.length === 0 ? (
            <Empty title="No users">Without users, this server listens on this machine only.</Empty>
          ) : (
            <table>
              <tbody>
                {users.map((user) => (
                  <tr key={user.name}>
                    <td>{user.name}</td>
                    <td>{Object.entries(user.roles).map(([project, role]) => `${role} in ${project === "*" ? "every project" : project}`).join(", ")}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Loaded>
    </Card>
  );
}

function Webhooks() {
  const found = useApi<ShownWebhook[]>("webhooks", ["webhook"]);
  return (
    <Card title="Webhooks" span="c6" side={<Command>everloop webhooks add NAME URL</Command>}>
      <Loaded of={found} lines={2}>
        {(hooks) =>
          hooks.length === 0 ? (
            <Empty title="No webhooks">A webhook is a URL that receives events, such as a new champion.</Empty>
          ) : (
            <table>
              <tbody>
                {hooks.map((hook) => (
                  <tr key={hook.id}>
                    <td>{hook.name}</td>
                    <td className="mono small">{hook.url}</td>
                  </tr>
                ))}
              </tbody>
            </table>
          )
        }
      </Loaded>
    </Card>
  );
}
