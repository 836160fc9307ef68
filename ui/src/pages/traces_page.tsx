// Traces of programs that call language models, from MLflow's and OpenTelemetry's clients.
import { useApi } from "../api/client";
import { Badge, Card, Empty, Head, Loaded, Time, useTitle } from "../components/basics";
import { duration } from "../format";

type Trace = { id: string; trace_id: string; requested_at: string; seconds: number | null; state: string; request_preview: string | null; response_preview: string | null };

export function TracesPage() {
  useTitle("Traces");
  const found = useApi<Trace[]>("trace?limit=200", ["trace"]);
  return (
    <>
      <Head title="Traces" sub="Requests through programs, as trees of spans." />
      <Card>
        <Loaded of={found}>
          {(traces) =>
            traces.length === 0 ? (
              <Empty title="No traces yet">Point MLflow's or OpenTelemetry's client at this server: its traces appear here.</Empty>
            ) : (
              <div className="scroll">
                <table>
                  <thead>
                    <tr>
                      <th>Trace</th>
                      <th>State</th>
                      <th>When</th>
                      <th className="number">Took</th>
                      <th>Request</th>
                      <th>Response</th>
                    </tr>
                  </thead>
                  <tbody>
                    {traces.map((one) => (
                      <tr key={one.id}>
                        <td className="mono small">{one.trace_id.slice(0, 16)}</td>
                        <td>
                          <Badge state={one.state} />
                        </td>
                        <td>
                          <Time at={one.requested_at} />
                        </td>
                        <td className="number">{duration(one.seconds)}</td>
                        <td className="small">{one.request_preview?.slice(0, 160)}</td>
                        <td className="small">{one.response_preview?.slice(0, 160)}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            )
          }
        </Loaded>
      </Card>
    </>
  );
}
