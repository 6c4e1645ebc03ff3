// A dashboard drawn by Grafana's own components, with what a Prometheus answers to its queries.
//
// Grafana's: frames, titles, units, thresholds, colours, legends, axes, plots. Ours, and only as much as our
// dashboards need: choosing everything in the variables, asking, overrides by name, the grid. The plugin that
// draws heatmaps is not published, so a board with one cannot be drawn.
import '@fontsource-variable/inter';
import 'uplot/dist/uPlot.min.css';
import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  createTheme, FieldType, getDisplayProcessor, reduceField, ThemeContext, toDataFrame,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { BigValue, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';

const { board, prometheus, from, to, mode } = await (await fetch('data.json')).json();
const theme = createTheme({ colors: { mode }, typography: { fontFamily: "'Inter Variable', sans-serif" } });
const timeZone = 'utc';
const STEP = 1;
const GAP = 8;
const ROW = 30; // pixels of a grid's row, and the gap
const timeRange = {
  from: { valueOf: () => from * 1000 },
  to: { valueOf: () => to * 1000 },
  raw: { from: 'now', to: 'now' },
};

const chosen = (query) => query.replace(/\$__rate_interval/g, '10s').replace(/\$(job|instance|pool)\b/g, '.+');

const named = (legend, labels) => legend.replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '');

async function ask(target) {
  const query = new URLSearchParams({ query: chosen(target.expr), start: from, end: to, step: STEP });
  const answer = await (await fetch(`${prometheus}/api/v1/query_range?${query}`)).json();
  if (answer.status !== 'success') throw new Error(answer.error);
  return answer.data.result.map((series) => ({
    name: named(target.legendFormat, series.metric),
    labels: series.metric,
    points: new Map(series.values.map(([time, value]) => [time, value === 'NaN' ? null : Number(value)])),
  }));
}

function assign(object, path, value) {
  const [last, ...way] = path.split('.').reverse();
  way.reverse().reduce((inner, key) => (inner[key] ??= {}), object)[last] = value;
}

const PLAIN = {
  axisPlacement: 'auto',
  pointSize: 5,
  lineInterpolation: 'linear',
  scaleDistribution: { type: 'linear' },
  hideFrom: { viz: false, legend: false, tooltip: false },
};

function settings({ defaults, overrides }, name) {
  const config = structuredClone({ ...defaults, displayNameFromDS: name });
  config.custom = { ...PLAIN, ...config.custom };
  for (const { matcher, properties } of overrides) {
    if (matcher.options === name) properties.forEach(({ id, value }) => assign(config, id, value));
  }
  return config;
}

function frame(panel, { name, labels, points }, seriesIndex) {
  const times = Array.from({ length: Math.floor((to - from) / STEP) + 1 }, (_, i) => from + i * STEP);
  const made = toDataFrame({
    fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: times.map((time) => time * 1000) },
      {
        name,
        labels,
        type: FieldType.number,
        config: settings(panel.fieldConfig, name),
        values: times.map((time) => points.get(time) ?? null),
      },
    ],
  });
  const numbers = made.fields[1].values.filter((value) => value !== null);
  const [min, max] = [Math.min(...numbers), Math.max(...numbers)];
  made.fields[1].state = { seriesIndex, displayName: name, range: { min, max, delta: max - min } };
  for (const field of made.fields) field.display = getDisplayProcessor({ field, theme, timeZone });
  return made;
}

function Stat({ panel, frames, width, height }) {
  const [time, field] = frames[0].fields;
  const { colorMode, graphMode, textMode, justifyMode } = panel.options;
  const value = field.display(reduceField({ field, reducers: ['lastNotNull'] }).lastNotNull);
  const sparkline = { x: time, y: field, timeRange };
  return <BigValue {...{ value, colorMode, graphMode, textMode, justifyMode, sparkline, theme, width, height }} />;
}

function Lines({ panel, frames, width, height }) {
  const { legend } = panel.options;
  return <TimeSeries {...{ frames, width, height, timeRange, timeZone, legend }} structureRev={1} />;
}

const KINDS = { stat: Stat, timeseries: Lines };

function Panel({ panel, frames, width, height }) {
  const Kind = KINDS[panel.type];
  return (
    <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
      {(innerWidth, innerHeight) => <Kind panel={panel} frames={frames} width={innerWidth} height={innerHeight} />}
    </PanelChrome>
  );
}

function Board({ data }) {
  const column = (window.innerWidth - 2 * GAP) / 24;
  const cells = board.panels.map((panel) => {
    const { x, y, w, h } = panel.gridPos;
    const place = { position: 'absolute', left: GAP + x * column, top: y * (ROW + GAP) };
    const width = w * column - GAP;
    return (
      <div key={panel.id} style={place}>
        {panel.type === 'row' ? (
          <h5 style={{ width, margin: '10px 0 0 4px' }}>{panel.title}</h5>
        ) : (
          <Panel panel={panel} frames={data.get(panel.id)} width={width} height={h * (ROW + GAP) - GAP} />
        )}
      </div>
    );
  });
  const bottom = Math.max(...board.panels.map(({ gridPos }) => gridPos.y + gridPos.h)) * (ROW + GAP);
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <h3 style={{ margin: '12px 14px 2px' }}>{board.title}</h3>
      <div style={{ position: 'relative', height: bottom + GAP }}>{cells}</div>
    </ThemeContext.Provider>
  );
}

try {
  await initPluginTranslations('rtpool', []);
  const data = new Map();
  for (const panel of board.panels.filter(({ type }) => type !== 'row')) {
    if (!KINDS[panel.type]) throw new Error(`cannot draw a ${panel.type}`);
    const series = (await Promise.all(panel.targets.map(ask))).flat();
    if (!series.length) throw new Error(`no data for ${panel.title}`);
    data.set(panel.id, series.map((one, index) => frame(panel, one, index)));
  }
  createRoot(document.getElementById('root')).render(<Board data={data} />);
  document.title = 'drawn';
} catch (error) {
  document.title = `failed: ${error.stack}`;
}
