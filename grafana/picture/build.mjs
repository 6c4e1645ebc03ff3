// node build.mjs OUTFILE: page.jsx and all it needs for the browser; styles and fonts beside it.
import { build } from 'esbuild';
import { fileURLToPath } from 'node:url';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

await build({
  entryPoints: [here('page.jsx')],
  outfile: process.argv[2],
  bundle: true,
  minify: true,
  format: 'esm',
  mainFields: ['module', 'main'],
  define: { 'process.env.NODE_ENV': '"production"' },
  // What Node has and browsers do not; nothing of it is called.
  alias: Object.fromEntries(['assert', 'stream', 'tty', 'util'].map((name) => [name, here('nothing.js')])),
  loader: { '.woff2': 'file', '.ttf': 'empty' }, // the latter is an editor's, which is not shown
  logLevel: 'error',
});
