// Asks for so many transfers, so many at a time, over Restate's own HTTP entrance, and times each until it says `completed`.
// In: address, sagas, in flight. Out: one line of JSON. An answer that is another fails the run.
import http from "node:http";

const [address, sagas, inFlight, run] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4]), process.argv[5]];
const agent = new http.Agent({ keepAlive: true, maxSockets: inFlight });

const ask = (transfer) =>
  new Promise((resolve, reject) => {
    const body = JSON.stringify({ transfer, from: "A", to: "B", cents: 700 });
    const options = { method: "POST", agent, headers: { "content-type": "application/json", "content-length": body.length } };
    const request = http.request(`${address}/Transfer/${transfer}/run`, options, (response) => {
      let text = "";
      response.on("data", (part) => (text += part));
      response.on("end", () => (text === '"completed"' ? resolve() : reject(new Error(`${response.statusCode} ${text}`))));
    });
    request.on("error", reject);
    request.end(body);
  });

const latencies = [];
let next = 0;
const begun = performance.now();
const worker = async () => {
  while (next < sagas) {
    const transfer = `${run}-${next++}`;
    const asked = performance.now();
    await ask(transfer);
    latencies.push(performance.now() - asked);
  }
};
await Promise.all(Array.from({ length: inFlight }, worker));
const seconds = (performance.now() - begun) / 1000;
latencies.sort((a, b) => a - b);
const at = (share) => latencies[Math.min(Math.floor(latencies.length * share), latencies.length - 1)];
if (latencies.length !== sagas) throw new Error(`${latencies.length} of ${sagas} completed`);
console.log(JSON.stringify({ sagas, in_flight: inFlight, per_second: sagas / seconds, p50_ms: at(0.5), p99_ms: at(0.99) }));
