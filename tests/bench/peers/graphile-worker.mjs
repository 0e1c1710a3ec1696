// graphile-worker, for `python -m tests.bench.compare`: node graphile-worker.mjs JOBS WORKERS, in the directory whose
// node_modules has it. The rest of the contract is that of contract.py.
import { fork } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { performance } from "node:perf_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const require = createRequire(`${process.cwd()}/`);
const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const { Pool } = require("pg");

const CONCURRENCY = 24;
const LOCAL_QUEUE = 500;
const BATCH = 1000;
const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});

function connect(max) {
  const pool = new Pool({ connectionString: process.env.BENCH_DSN, max });
  pool.on("error", fail);
  pool.on("connect", (client) => client.on("error", fail));
  return pool;
}

if (process.argv[2] === "work") await work();
else await measure(Number(process.argv[2]), Number(process.argv[3]));

async function measure(jobs, workers) {
  const pool = connect(2);
  const enqueue_seconds = await enqueue(pool, jobs);
  await pool.query("analyze"); // as if autovacuum had been here already
  const seconds = await drain(pool, workers);
  const settings =
    `concurrentJobs ${CONCURRENCY}, localQueue ${LOCAL_QUEUE}, completeJobBatchDelay 0, addJobs of ${BATCH}`;
  const { version } = require("graphile-worker/package.json");
  const told = { peer: "graphile-worker", version, runtime: `Node ${process.versions.node}`, jobs, workers };
  console.log(JSON.stringify({ ...told, settings, enqueue_seconds, seconds }));
  process.exit(0);
}

async function enqueue(pgPool, jobs) {
  const specs = Array.from({ length: jobs }, (_, number) => ({
    identifier: "noop",
    payload: { user_id: number, email: "someone@example.com", template: "welcome", note: "x".repeat(40) },
  }));
  const utils = await makeWorkerUtils({ pgPool, logger });
  await utils.migrate();
  const began = performance.now();
  for (let first = 0; first < jobs; first += BATCH) await utils.addJobs(specs.slice(first, first + BATCH));
  return (performance.now() - began) / 1000;
}

async function drain(pool, workers) {
  const children = Array.from({ length: workers }, () => fork(fileURLToPath(import.meta.url), ["work"]));
  for (const child of children) child.on("exit", () => fail("a worker process has ended, see above"));
  try {
    await Promise.all(children.map((child) => once(child, "message")));
    const began = performance.now();
    for (const child of children) child.send("go");
    for (;;) {
      const looked = performance.now();
      if (await isIdle(pool)) return (looked - began) / 1000;
      await sleep(Math.max(20, 9 * (performance.now() - looked)));
    }
  } finally {
    for (const child of children) child.removeAllListeners("exit").kill("SIGKILL");
  }
}

// Jobs that have succeeded are deleted; one that has failed stays.
async function isIdle(pool) {
  const { rows } = await pool.query("select not exists (select from graphile_worker.jobs) as idle");
  return rows[0].idle;
}

async function work() {
  const pgPool = connect(CONCURRENCY + 1);
  await pgPool.query("select 1");
  process.send("ready");
  await once(process, "message");
  await run({
    preset: {
      worker: {
        concurrentJobs: CONCURRENCY,
        localQueue: { size: LOCAL_QUEUE, refetchDelay: { durationMs: 10 } },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
      },
    },
    pgPool,
    logger,
    taskList: { noop: async () => {} },
  });
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
