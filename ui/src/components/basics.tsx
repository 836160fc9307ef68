// The parts that every page is made of.
import type { UseQueryResult } from "@tanstack/react-query";
import { Component, useEffect, useRef, useState, type ReactNode } from "react";
import { ApiError } from "../api/client";
import { useMay, type Role } from "./access";
import { time, useZone, words, zoneName } from "../format";

export function Head({ title, sub, crumbs, children }: { title: ReactNode; sub?: ReactNode; crumbs?: ReactNode; children?: ReactNode }) {
  return (
    <div className="head">
      <div className="grow">
        {crumbs && <div className="crumbs">{crumbs}</div>}
        <h1>{title}</h1>
        {sub && <p className="sub">{sub}</p>}
      </div>
      {children}
    </div>
  );
}

export function Card({ title, side, span, children }: { title?: ReactNode; side?: ReactNode; span?: string; children: ReactNode }) {
  return (
    <section className={`card ${span ?? ""}`}>
      {title && (
        <header>
          <h2>{title}</h2>
          {side}
        </header>
      )}
      {children}
    </section>
  );
}

const TONES: Record<string, string> = {
  ok: "good", pass: "good", finished: "good", completed: "good", ready: "good", resolved: "good", released: "good", ran: "good", approved: "good", applied: "good", accepted: "good", live: "good", champion: "good",
  attention: "warn", undecided: "warn", notice: "warn", acknowledged: "warn", muted: "warn", rejected: "warn", rolled_back: "warn", interrupted: "warn", draining: "warn", warning: "warn", superseded: "warn", stopped: "warn",
  failed: "bad", fail: "bad", alarm: "bad", lost: "bad", error: "bad", open: "bad",
  busy: "busy", running: "busy", rolling_out: "busy", scheduled: "busy", queued: "busy", starting: "busy", canary: "busy", in_progress: "busy",
};

export function Badge({ state, children }: { state: string; children?: ReactNode }) {
  return <span className={`badge ${TONES[state] ?? ""}`}>{children ?? words(state)}</span>;
}

export function Time({ at, precise }: { at: string | null | undefined; precise?: boolean }) {
  const [zone] = useZone();
  if (!at) return <span className="soft">–</span>;
  return (
    <time dateTime={at} title={`${at} (shown in ${zoneName(zone)})`} className="nowrap">
      {time(at, precise)}
    </time>
  );
}

export function Command({ children, label }: { children: string; label?: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(children);
      setCopied(true);
      setTimeout(() => setCopied(false), 1500);
    } catch {
      setCopied(false);
    }
  };
  return (
    <span className="command">
      <code>{children}</code>
      <button type="button" onClick={copy} aria-label={label ?? `Copy the command ${children}`}>
        {copied ? "Copied" : "Copy"}
      </button>
    </span>
  );
}

export function Empty({ title, children, command }: { title: string; children?: ReactNode; command?: string }) {
  return (
    <div className="empty">
      <b>{title}</b>
      {children && <p>{children}</p>}
      {command && <Command>{command}</Command>}
    </div>
  );
}

export function Loading({ lines = 4 }: { lines?: number }) {
  return (
    <div aria-busy="true">
      <span className="visually-hidden">Loading</span>
      {Array.from({ length: lines }, (_, index) => (
        <span key={index} className="skeleton" style={{ width: `${92 - ((index * 17) % 45)}%` }} />
      ))}
    </div>
  );
}

export function Problem({ error }: { error: Error }) {
  return (
    <div className="error" role="alert">
      <b>{error.message}</b>
      {error instanceof ApiError && error.help && <span>{error.help}</span>}
      {error instanceof ApiError && error.status === 401 && <span>Your login has expired. Reload the page to log in again.</span>}
    </div>
  );
}

/** Show what a request has found; while it is on its way a skeleton, and its error if it failed. */
export function Loaded<T>({ of, lines, children }: { of: UseQueryResult<T, Error>; lines?: number; children: (data: T) => ReactNode }) {
  if (of.data !== undefined) return <>{children(of.data)}</>;
  if (of.error) return <Problem error={of.error} />;
  return <Loading {...(lines ? { lines } : {})} />;
}

/** The same for a whole page: it has its heading and its way back before, and also if it cannot be read. */
export function LoadedPage<T>({ of, title, crumbs, children }: { of: UseQueryResult<T, Error>; title: string; crumbs?: ReactNode; children: (data: T) => ReactNode }) {
  if (of.data !== undefined) return <>{children(of.data)}</>;
  return (
    <>
      <Head title={title} crumbs={crumbs} />
      {of.error ? <Problem error={of.error} /> : <Loading lines={10} />}
    </>
  );
}

/** Ask for a reason before something is done, and show the command that does the same. */
export function Confirm(props: {
  label: string;
  title: string;
  explain: ReactNode;
  command: (reason: string) => string;
  act: (reason: string) => Promise<unknown>;
  danger?: boolean;
  primary?: boolean;
  required?: boolean;
  small?: boolean;
  /** Whether the fields above the reason are filled in. */
  ready?: boolean;
  /** Left out if the server keeps no reason for it. */
  withoutReason?: boolean;
  /** The role that it needs. Who has less does not see it. */
  role: Role;
  /** Fields above the reason. */
  children?: ReactNode;
}) {
  const may = useMay(props.role);
  const dialog = useRef<HTMLDialogElement>(null);
  const [reason, setReason] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const run = async () => {
    setBusy(true);
    setError(null);
    try {
      await props.act(reason.trim());
      dialog.current?.close();
      setReason("");
    } catch (failure) {
      setError(failure as Error);
    } finally {
      setBusy(false);
    }
  };
  if (!may) return null;
  return (
    <>
      <button type="button" className={`button ${props.danger ? "danger" : ""} ${props.primary ? "primary" : ""} ${props.small ? "small" : ""}`} onClick={() => { setError(null); dialog.current?.showModal(); }}>
        {props.label}
      </button>
      <dialog ref={dialog} aria-label={props.title}>
        <form
          method="dialog"
          onSubmit={(event) => {
            event.preventDefault();
            void run();
          }}
        >
          <h2>{props.title}</h2>
          <p>{props.explain}</p>
          {props.children}
          {!props.withoutReason && (
            <label className="field">
              <span>Reason{props.required ? "" : " (optional)"}</span>
              <textarea className="input" rows={2} maxLength={10000} value={reason} required={props.required ?? false} onChange={(event) => setReason(event.target.value)} />
            </label>
          )}
          <div className="field">
            <span className="soft small">The same from the command line</span>
            <Command>{props.command(reason.trim())}</Command>
          </div>
          {error && <Problem error={error} />}
          <div className="row">
            <button type="submit" className={`button ${props.danger ? "danger" : "primary"}`} disabled={busy || props.ready === false}>
              {busy ? "Working…" : props.label}
            </button>
            <button type="button" className="button" onClick={() => dialog.current?.close()}>
              Cancel
            </button>
          </div>
        </form>
      </dialog>
    </>
  );
}

export function shell(argument: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'"'"'`)}'`;
}

/** A page that fails to draw must not take the others with it. */
export class Boundary extends Component<{ children: ReactNode; at: string }, { error: Error | null; at: string }> {
  override state: { error: Error | null; at: string } = { error: null, at: this.props.at };

  static getDerivedStateFromError(error: Error) {
    return { error };
  }

  static getDerivedStateFromProps(props: { at: string }, state: { at: string }) {
    return props.at === state.at ? null : { error: null, at: props.at };
  }

  override render() {
    if (!this.state.error) return this.props.children;
    return (
      <>
        <Head title="This page could not be drawn" />
        <Problem error={this.state.error} />
      </>
    );
  }
}

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = title ? `${title} · everloop` : "everloop";
  }, [title]);
}
