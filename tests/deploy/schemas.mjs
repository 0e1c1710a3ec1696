// Reads objects as JSON, and says of each whether the custom resource's own schema takes it.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";

const kinds = { ScaledObject, PodMonitor };
for (const found of JSON.parse(readFileSync(0))) {
  try {
    new kinds[found.kind](found).validate();
    console.log("ok");
  } catch (error) {
    console.log(error.message);
  }
}
