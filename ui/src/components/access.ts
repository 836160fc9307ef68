// What the present user may do. The server decides; the page only leaves out what would be refused.
import type { Me } from "../api/schema";
import { useApi } from "../api/client";

const ROLES = ["viewer", "editor", "approver", "admin"];
export type Role = "viewer" | "editor" | "approver" | "admin";

export const isEnough = (has: string | undefined, needed: Role): boolean => has !== undefined && ROLES.indexOf(has) >= ROLES.indexOf(needed);

/** Whether the user has at least this role; false until it is known. */
export function useMay(needed: Role): boolean {
  const me = useApi<Me>("access/me", ["user"]);
  return me.data !== undefined && (!me.data.login || isEnough(me.data.role, needed));
}
