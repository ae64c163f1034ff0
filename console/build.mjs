// Builds the console into the folder whose files are part of the program: `node build.mjs [FOLDER]`.
//
// The same sources and the same lock file give the same bytes: nothing here knows a time, a path or a machine.
import { build } from "esbuild";
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import path from "node:path";

const here = path.dirname(fileURLToPath(import.meta.url));
const target = path.resolve(process.argv[2] ?? path.join(here, "../crates/api/assets/console"));

// What is in console.js and console.css beside our own sources.
const PACKAGES = ["preact", "@xterm/xterm", "@xterm/addon-fit"];

await mkdir(target, { recursive: true });
await build({
  absWorkingDir: here,
  entryPoints: { console: "src/main.tsx" },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  jsx: "automatic",
  jsxImportSource: "preact",
  outdir: target,
  logLevel: "warning",
});
for (const file of ["index.html", "icon.svg"]) {
  await copyFile(path.join(here, "src", file), path.join(target, file));
}
const notices = ["The web console of Strata contains these programs, with thanks to their authors.\n"];
for (const name of PACKAGES) {
  const folder = path.join(here, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(path.join(folder, "package.json"), "utf8"));
  const text = await readFile(path.join(folder, "LICENSE"), "utf8");
  notices.push(`${name} ${version} (${license})\n\n${text.trim()}\n`);
}
await writeFile(path.join(target, "licenses.txt"), notices.join(`\n${"-".repeat(80)}\n\n`));
