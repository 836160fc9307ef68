// The frame around every page: navigation, the state of the connection, keys, and the way to each page.
import { useEffect, useRef, useState } from "react";
import { useApi } from "./api/client";
import type { Overview } from "./api/schema";
import { useStreamState } from "./api/stream";
import { Boundary, Card, Empty, Head, useTitle } from "./components/basics";
import { Icon, Logo } from "./components/icons";
import { useTheme } from "./components/theme";
import { useZone, zoneName } from "./format";
import { ArtifactPage } from "./pages/artifact_page";
import { ComparePage } from "./pages/compare_page";
import { DataPage, FeatureViewPage, SnapshotPage } from "./pages/data_page";
import { EndpointPage, EndpointsPage } from "./pages/endpoints_page";
import { HOME_KINDS, LoopPage } from "./pages/loop_page";
import { ModelPage, ModelsPage, VersionPage } from "./pages/models_page";
import { IncidentPage, MonitorPage } from "./pages/monitor_page";
import { PredictionPage } from "./pages/prediction_page";
import { ReplayPage, ReplaysPage } from "./pages/replay_page";
import { RunPage } from "./pages/run_page";
import { RunsPage } from "./pages/runs_page";
import { SettingsPage } from "./pages/settings_page";
import { TracePage, TracesPage } from "./pages/traces_page";
import { go, href, useRoute } from "./router";

const PAGES: { name: string; title: string; key: string }[] = [
  { name: "loop", title: "Loop", key: "l" },
  { name: "runs", title: "Runs", key: "r" },
  { name: "data", title: "Data", key: "d" },
  { name: "models", title: "Models", key: "m" },
  { name: "endpoints", title: "Endpoints", key: "e" },
  { name: "monitor", title: "Monitor", key: "o" },
  { name: "replay", title: "Replay", key: "y" },
  { name: "traces", title: "Traces", key: "t" },
  { name: "settings", title: "Settings", key: "s" },
];

/** Pages that belong to another one's place in the navigation. */
const BELOW: Record<string, string> = { compare: "runs", artifacts: "runs", features: "data", predictions: "models" };

export function App() {
  const route = useRoute();
  const help = useRef<HTMLDialogElement>(null);
  const [first = "loop", second, third] = route.path;
  useKeys(help);
  useEffect(() => {
    window.scrollTo(0, 0);
  }, [first, second, third]);
  return (
    <div className="shell">
      <a className="visually-hidden" href="#main-content" onClick={(event) => { event.preventDefault(); document.getElementById("main-content")?.focus(); }}>
        Skip to the content
      </a>
      <Navigation current={BELOW[first] ?? first} help={() => help.current?.showModal()} />
      <main className="main" id="main-content" tabIndex={-1}>
        <Connection />
        <Boundary at={route.raw}>{page(first, second, third)}</Boundary>
      </main>
      <Help dialog={help} />
    </div>
  );
}

function page(first: string, second: string | undefined, third: string | undefined) {
  switch (first) {
    case "loop":
      return <LoopPage />;
    case "runs":
      return second ? <RunPage id={second} /> : <RunsPage />;
    case "compare":
      return <ComparePage />;
    case "data":
      return second ? <SnapshotPage name={second} /> : <DataPage />;
    case "features":
      return second ? <FeatureViewPage name={second} /> : <DataPage />;
    case "predictions":
      return second ? <PredictionPage id={second} /> : <ModelsPage />;
    case "models":
      return second && third ? <VersionPage model={second} number={third} /> : second ? <ModelPage name={second} /> : <ModelsPage />;
    case "endpoints":
      return second ? <EndpointPage name={second} /> : <EndpointsPage />;
    case "monitor":
      return second ? <IncidentPage id={second} /> : <MonitorPage />;
    case "replay":
      return second ? <ReplayPage id={second} /> : <ReplaysPage />;
    case "artifacts":
      return second ? <ArtifactPage id={second} /> : <RunsPage />;
    case "traces":
      return second ? <TracePage id={second} /> : <TracesPage />;
    case "settings":
      return <SettingsPage />;
    default:
      return <NotFound name={first} />;
  }
}

function NotFound({ name }: { name: string }) {
  useTitle("Page not found");
  return (
    <>
      <Head title="This page does not exist" />
      <Card>
        <Empty title={`There is nothing at '${name}'`}>
          <a href={href("loop")}>Go to the loop</a>
        </Empty>
      </Card>
    </>
  );
}

function Navigation({ current, help }: { current: string; help: () => void }) {
  const [open, setOpen] = useState(false);
  const [theme, setTheme] = useTheme();
  const [zone] = useZone();
  const overview = useApi<Overview>("views/loops", HOME_KINDS);
  const incidents = overview.data?.attention.filter((one) => one.kind === "incident").length ?? 0;
  useEffect(() => setOpen(false), [current]);
  return (
    <nav className={`nav ${open ? "open" : ""}`} aria-label="Pages">
      <a className="brand" href={href("loop")}>
        <Logo />
        everloop
      </a>
      <button type="button" className="button plain menu-toggle" aria-expanded={open} aria-label="Menu" onClick={() => setOpen(!open)}>
        <span style={{ width: 20, display: "flex" }}>
          <Icon name="menu" />
        </span>
      </button>
      <div className="items">
        {PAGES.map((one) => (
          <a key={one.name} className="item" href={href(one.name)} aria-current={current === one.name ? "page" : undefined}>
            <Icon name={one.name} />
            {one.title}
            {one.name === "monitor" && incidents > 0 && (
              <span className="count" aria-label={`${incidents} open incidents`}>
                {incidents}
              </span>
            )}
          </a>
        ))}
      </div>
      <div className="foot">
        <span>Times in {zoneName(zone)}</span>
        <div className="row">
          <button type="button" className="button plain small" onClick={() => setTheme(theme === "dark" ? "light" : "dark")}>
            {theme === "dark" ? "Light" : "Dark"}
          </button>
          <button type="button" className="button plain small" onClick={help}>
            Keys
          </button>
        </div>
      </div>
    </nav>
  );
}

function Connection() {
  const state = useStreamState();
  if (state !== "lost") return null;
  return (
    <div className="banner" role="status">
      The server does not answer. What you see may be old; it is read again as soon as the server is back.
    </div>
  );
}

function useKeys(help: React.RefObject<HTMLDialogElement | null>): void {
  useEffect(() => {
    let leader = 0;
    const listen = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      if (event.key === "/") {
        event.preventDefault();
        const box = document.querySelector<HTMLInputElement>("[data-search]");
        if (box) box.focus();
        else go(href("runs"));
      } else if (event.key === "?") {
        help.current?.showModal();
      } else if (event.key === "g") {
        leader = Date.now();
      } else if (Date.now() - leader < 1500) {
        const found = PAGES.find((one) => one.key === event.key);
        if (found) go(href(found.name));
        leader = 0;
      }
    };
    window.addEventListener("keydown", listen);
    return () => window.removeEventListener("keydown", listen);
  }, [help]);
}

function Help({ dialog }: { dialog: React.RefObject<HTMLDialogElement | null> }) {
  return (
    <dialog ref={dialog} aria-label="Keys" className="keys">
      <h2>Keys</h2>
      <dl className="facts" style={{ marginBlock: "0.8rem" }}>
        <dt>
          <kbd>/</kbd>
        </dt>
        <dd>Filter runs</dd>
        <dt>
          <kbd>?</kbd>
        </dt>
        <dd>This list</dd>
        {PAGES.map((one) => (
          <div key={one.name} style={{ display: "contents" }}>
            <dt>
              <kbd>g</kbd> <kbd>{one.key}</kbd>
            </dt>
            <dd>{one.title}</dd>
          </div>
        ))}
      </dl>
      <form method="dialog">
        <button type="submit" className="button">
          Close
        </button>
      </form>
    </dialog>
  );
}
