// Custom resources, as a JSON array on standard input, against the models of their CRDs: required fields and types. Unknown
// fields are not found. CRD_MODELS is the folder where the npm packages are.
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "networking.istio.io": "@kubernetes-models/istio",
  "security.istio.io": "@kubernetes-models/istio",
};

const items = JSON.parse(await text(process.stdin));
let failed = 0;
for (const item of items) {
  const [group, version] = item.apiVersion.split("/");
  try {
    const file = `${process.env.CRD_MODELS}/node_modules/${PACKAGES[group]}/${group}/${version}/index.js`;
    const models = await import(pathToFileURL(file));
    new models[item.kind](item).validate();
  } catch (error) {
    failed += 1;
    console.log(`${item.kind}/${item.metadata.name}: ${error.message}`);
  }
}
console.log(`custom resources with a model: ${items.length}, of which ${failed} fail`);
process.exit(failed > 0 ? 1 : 0);
