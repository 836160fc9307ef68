import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const server = process.env.EVERLOOP_SERVER ?? "http://127.0.0.1:8100";

export default defineConfig({
  plugins: [react()],
  // Addresses in the built page are relative, so that it works below any path of a proxy.
  base: "./",
  build: {
    outDir: process.env.EVERLOOP_PAGE_OUT ?? "../src/everloop/server/page",
    emptyOutDir: true,
    target: "es2022",
    // An inlined asset would be a data: address, which the content security policy allows for pictures only.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": server, "/health": server, "/endpoints": server } },
});
