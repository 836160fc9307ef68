// A directed graph from left to right, laid out by dagre: steps of a run, or the lineage of a version.
import dagre from "@dagrejs/dagre";
import { useMemo } from "react";

export type GraphNode = { id: string; kind: string; title: string; detail: string; link?: string; parents: readonly string[]; tone?: string };

const WIDEST = 168;
const HEIGHT = 50;
const MOST = 300;

export function Graph({ nodes, label }: { nodes: GraphNode[]; label: string }) {
  const width = Math.min(WIDEST, Math.max(96, ...nodes.map((node) => 24 + 7.2 * node.title.length)));
  const drawn = useMemo(() => layout(nodes.slice(0, MOST), width), [nodes, width]);
  return (
    <div className="scroll">
      <svg className="graph" viewBox={`0 0 ${drawn.width} ${drawn.height}`} style={{ display: "block", width: "100%", maxWidth: drawn.width, minWidth: drawn.width * 0.55, height: "auto" }} role="group" aria-label={label}>
        <defs>
          <marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
            <path d="M0 0L8 4L0 8z" fill="var(--faint)" />
          </marker>
        </defs>
        {drawn.edges.map((edge, index) => (
          <path key={index} className="edge" d={edge} markerEnd="url(#arrow)" />
        ))}
        {drawn.nodes.map(({ node, x, y }) => {
          const inside = (
            <>
              <rect x={x - width / 2} y={y - HEIGHT / 2} width={width} height={HEIGHT} rx="8" style={node.tone ? { stroke: node.tone } : {}}>
                <title>{`${node.title}\n${node.detail}`}</title>
              </rect>
              <text className="kind" x={x - width / 2 + 10} y={y - 8}>
                {node.kind}
              </text>
              <text className="title" x={x - width / 2 + 10} y={y + 10}>
                {short(node.title, 21)}
              </text>
            </>
          );
          return node.link ? (
            <a key={node.id} href={`#/${node.link}`}>
              {inside}
            </a>
          ) : (
            <g key={node.id}>{inside}</g>
          );
        })}
      </svg>
    </div>
  );
}

function layout(nodes: readonly GraphNode[], width: number) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 14, ranksep: 30, marginx: 4, marginy: 6 });
  graph.setDefaultEdgeLabel(() => ({}));
  const known = new Set(nodes.map((node) => node.id));
  for (const node of nodes) graph.setNode(node.id, { width, height: HEIGHT });
  for (const node of nodes) for (const parent of node.parents) if (known.has(parent)) graph.setEdge(parent, node.id);
  dagre.layout(graph);
  const size = graph.graph();
  return {
    width: Math.ceil(size.width ?? 0) + 2,
    height: Math.ceil(size.height ?? 0) + 2,
    nodes: nodes.map((node) => ({ node, x: graph.node(node.id).x, y: graph.node(node.id).y })),
    edges: graph.edges().map((edge) => curve(graph.edge(edge).points)),
  };
}

function curve(points: readonly { x: number; y: number }[]): string {
  const [first, ...rest] = points;
  const last = rest.at(-1);
  if (!first || !last) return "";
  const middle = (first.x + last.x) / 2;
  return `M${first.x} ${first.y}C${middle} ${first.y} ${middle} ${last.y} ${last.x} ${last.y}`;
}

const short = (text: string, most: number): string => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
