// Reads, pages, meets a deadline and watches, through the gateway:
//
//     node client.js 127.0.0.1:50051 CH00000000000000000000000000000001
//
// The address may be a name that stands for several gateways: dns:///participant-gateway-headless:50051.

import { randomUUID } from 'node:crypto';
import { once, EventEmitter } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const PROTO = process.env.PROTO ?? fileURLToPath(new URL('../../../proto', import.meta.url));
const contract = grpc.loadPackageDefinition(
  loadSync('participant/v1/participant_service.proto', { includeDirs: [PROTO], keepCase: true, enums: String, defaults: true }),
);

// Of google/rpc/status.proto and error_details.proto, what is used here.
const { root: details } = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { repeated Any details = 3; }
  message ErrorInfo { string reason = 1; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`, { keepCase: true });

const OPTIONS = {
  // A connection that has died in silence is noticed after at most 40 s, also while only a stream is open on it.
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  // Every address of the name takes its share of the calls.
  'grpc.service_config': JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
};
const ATTEMPTS = 6;
// Three heartbeats: a watcher that hears nothing for so long is not connected, whatever its connection says.
const SILENCE_MS = 45_000;

/** What the gateway says about a failed call; an error of the network has no details. */
function failure(error) {
  const said = { code: grpc.status[error.code], reason: '', metadata: {}, waitMs: undefined };
  const [encoded] = error.metadata?.get('grpc-status-details-bin') ?? [];
  for (const { type_url, value } of encoded ? details.lookupType('google.rpc.Status').decode(encoded).details : []) {
    const name = type_url.split('/').pop();
    if (name === 'google.rpc.ErrorInfo') {
      Object.assign(said, details.lookupType(name).decode(value));
    } else if (name === 'google.rpc.RetryInfo') {
      const { retry_delay: delay } = details.lookupType(name).decode(value);
      said.waitMs = Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    }
  }
  said.forbidsRetry = error.metadata?.get('grpc-retry-pushback-ms')[0] === '-1';
  said.name = said.reason || said.code;
  return said;
}

/** How long to wait before the call is repeated; undefined where it may not be. */
function msBefore(attempt, { code, waitMs, forbidsRetry }) {
  if (forbidsRetry) return undefined;
  // Never shorter, and a little longer by chance, so that callers who were told the same do not come back at once.
  if (waitMs !== undefined) return waitMs * (1 + Math.random() / 10);
  return code === 'UNAVAILABLE' ? backoffMs(attempt) : undefined;
}

function backoffMs(attempt) {
  return (0.5 + Math.random() / 2) * Math.min(100 * 2 ** attempt, 5000);
}

function unary(client, method, request, deadline) {
  return new Promise((resolve, reject) => {
    client[method](request, new grpc.Metadata(), { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

/** The one place that repeats calls: only those that are safe to repeat go through it, and all within one deadline. */
async function repeated(client, method, request, limitMs) {
  const deadline = Date.now() + limitMs;
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await unary(client, method, request, deadline);
    } catch (error) {
      const said = failure(error);
      const wait = msBefore(attempt, said);
      if (wait === undefined || attempt === ATTEMPTS || Date.now() + wait >= deadline) throw error;
      console.log(`retry: ${said.name}, in ${(wait / 1000).toFixed(1)} s`);
      await sleep(wait);
    }
  }
}

async function page(client, conversation) {
  const participants = [];
  for (let pages = 1, token = ''; ; pages += 1) {
    const request = { conversation, page_size: 2, page_token: token };
    const answer = await repeated(client, 'ListParticipants', request, 10_000);
    participants.push(...answer.participants);
    token = answer.next_page_token;
    if (token === '') {
      console.log(`page: ${participants.length} participants on ${pages} pages`);
      return participants;
    }
  }
}

async function read(client, conversation, participantId) {
  // 0 asks Twilio; absent would be the gateway's default.
  const request = { conversation, participant_id: participantId, read_options: { max_age: { seconds: 0 } } };
  const { participant, read_info: info } = await repeated(client, 'GetParticipant', request, 10_000);
  console.log(`read: ${participant.id} ${info.cache_status}`);
}

/** Not repeated: who has no more time has none for another attempt. */
async function meetDeadline(client, conversation, participantId) {
  const request = { conversation, participant_id: participantId, read_options: { max_age: { seconds: 0 } } };
  const code = await unary(client, 'GetParticipant', request, Date.now() + 300).then(() => 0, (error) => error.code);
  console.log(`deadline: ${grpc.status[code]}`);
}

async function create(client, conversation) {
  const participant = { addresses: [{ channel: 'CHANNEL_CHAT', address: `client-${randomUUID()}` }] };
  // The same id at every attempt makes this create safe to repeat.
  const request = { conversation, participant, request_id: randomUUID() };
  const { participant: created } = await repeated(client, 'CreateParticipant', request, 20_000);
  console.log(`create: ${created.id}`);
  return created.id;
}

/** Hands every change to `handle` once, whatever becomes of the connection; ends when `stop` does. */
async function watch(client, conversation, handle, begin, stop) {
  let token = '';
  for (let failures = 0; !stop.aborted; failures += 1) {
    if (failures > 0) await sleep(backoffMs(failures));
    const stream = client.WatchParticipants({ conversations: [conversation], resume_token: token });
    stop.onabort = () => stream.cancel();
    const silence = setTimeout(() => stream.cancel(), SILENCE_MS);
    try {
      for await (const message of stream) {
        silence.refresh();
        // Only now what is read is whole: a change from here on is told, and the read sees those before.
        if (token === '') await begin();
        if (message.event) await handle(message.event);
        // Not before it is dealt with. Who keeps it on disk goes on from here after a restart.
        token = message.resume_token;
        failures = 0;
      }
    } catch (error) {
      if (stop.aborted) return;
      const said = failure(error);
      if (said.reason === 'WATCH_LAGGED') token = said.metadata.resume_token;
      else if (said.reason === 'RESUME_TOKEN_EXPIRED') token = '';
      else if (!['UNAVAILABLE', 'DEADLINE_EXCEEDED', 'CANCELLED'].includes(said.code)) throw error;
      console.log(`watch: resumes after ${said.name}`);
    } finally {
      clearTimeout(silence);
    }
  }
}

async function main(address, conversationId) {
  const client = new contract.participant.v1.ParticipantService(address, grpc.credentials.createInsecure(), OPTIONS);
  const conversation = { conversation_id: conversationId };
  const participants = await page(client, conversation);
  await read(client, conversation, participants[0].id);
  await meetDeadline(client, conversation, participants.at(-1).id);

  const stop = new AbortController();
  const changes = new EventEmitter();
  const begun = once(changes, 'begun');
  const begin = async () => {
    await page(client, conversation);
    changes.emit('begun');
  };
  const told = new Set();
  const handle = (event) => {
    console.log(`watch: ${event.participant.id} ${event.type}`);
    told.add(event.participant.id);
    changes.emit('told');
  };
  const watcher = watch(client, conversation, handle, begin, stop.signal);
  const changing = (async () => {
    await begun;
    for (let made = 0; made < 2; made += 1) {
      const created = await create(client, conversation);
      while (!told.has(created)) await once(changes, 'told');
    }
    stop.abort();
  })();
  await Promise.all([watcher, changing]);
  client.close();
  console.log('done');
}

await main(...process.argv.slice(2));
