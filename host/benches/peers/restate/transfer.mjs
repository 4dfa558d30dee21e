// The saga of `cargo bench --bench sagas`, as Restate wants it: a keyed object that calls two services in turn, three calls in all, and keeps
// its state. Takes the port to listen at. Each call is journalled by the server; the steps themselves do nothing, as ours do.
import * as restate from "@restatedev/restate-sdk";

// The SDK wants it, and node 20 lacks it.
Promise.withResolvers ??= function () {
  const it = {};
  it.promise = new this((resolve, reject) => Object.assign(it, { resolve, reject }));
  return it;
};

const bank = restate.service({
  name: "Bank",
  handlers: {
    debit: async (_context, _transfer) => "debited",
    credit: async (_context, _transfer) => "credited",
    confirm: async (_context, _transfer) => "confirmed",
  },
});

const transfer = restate.object({
  name: "Transfer",
  handlers: {
    run: async (context, request) => {
      context.set("status", "started");
      const to = context.serviceClient(bank);
      await to.debit(request);
      context.set("status", "debited");
      await to.credit(request);
      context.set("status", "credited");
      await to.confirm(request);
      context.set("status", "completed");
      return "completed";
    },
  },
});

restate.serve({ services: [bank, transfer], port: Number(process.argv[2]) });
