#!/bin/sh
# Makes the schemas beside it anew, from the types that Grafana publishes: sh make.sh [version of @grafana/schema]
# Needs npm. Tests do not need it: they use what is committed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"private": true}' >package.json
echo '{"compilerOptions": {"target": "es2020", "module": "esnext", "moduleResolution": "bundler"}}' >tsconfig.json
npm install --ignore-scripts --no-audit --no-fund --loglevel=error \
    "@grafana/schema@${1:-13.2.3}" ts-json-schema-generator@2 typescript@5

types=node_modules/@grafana/schema/dist/types/raw
schema() {
    npx ts-json-schema-generator --no-type-check --tsconfig tsconfig.json --path "$1" --type "$2" -o "$here/$3"
}
schema "$types/dashboard/x/types.gen.d.ts" Dashboard dashboard.json
for panel in timeseries stat heatmap; do
    for part in Options FieldConfig; do
        schema "$types/composable/$panel/panelcfg/x/types.gen.d.ts" "$part" "$panel-$part.json"
    done
done
cp node_modules/@grafana/schema/LICENSE_APACHE2 "$here/LICENSE"
