//! The page, in a real browser: its numbers are those of `millstream lag`, whatever others wrote stays text, the keyboard is enough, two
//! hundred handlers are no burden, and what is old says so. Pictures are kept beside the build.

use std::net::SocketAddr;

use millstream::registry::{Deployment, Desired, Registry};
use millstream::settings::Settings;
use serde_json::{Value, json};

use crate::harness::browser::Browser;
use crate::harness::web::{get, web_host};
use crate::harness::{World, module, orders, until};
use crate::parking::{self, harmful, told};
use crate::services::{Answer, Command, Services};

const DESKTOP: (u32, u32) = (1280, 800);
const PHONE: (u32, u32) = (390, 844);

fn page(address: SocketAddr) -> String {
    format!("http://{address}/")
}

/// The raw value of a cell.
fn cell(browser: &mut Browser, handler: &str, field: &str) -> f64 {
    let cell = format!("document.querySelector('tr[data-handler=\"{handler}\"] [data-field={field}]').dataset.value");
    browser.is(&format!("Number({cell})")).as_f64().expect("a number")
}

#[track_caller]
fn pictures(browser: &mut Browser, name: &str) {
    for (colours, device, (width, height)) in [
        ("dark", "desktop", DESKTOP),
        ("light", "desktop", DESKTOP),
        ("dark", "phone", PHONE),
        ("light", "phone", PHONE),
    ] {
        browser.look(width, height, colours);
        browser.picture(&format!("{name}-{device}-{colours}"));
        let wide = browser.is("document.documentElement.scrollWidth");
        assert!(wide.as_u64() <= Some(u64::from(width)), "{name}: {wide} wide on a {device}");
    }
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_on_the_page_are_those_of_lag() {
    let Some(mut browser) = Browser::start() else { return };
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    world.deploy("customer-spend", "late", &["--label", "v1.2"]);
    world.ok(&["pause", "late", "--no-wait"]);
    world.publish(&orders(0, 1234)).await;
    let (mut host, address) = web_host(&world, &[]).await;
    world.caught_up("chain").await;
    world.in_state("late", "paused").await;

    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&page(address));
    browser.until("document.querySelector('tr[data-handler=late] .pill').textContent === 'paused'");
    browser.until("document.querySelector('tr[data-handler=chain] [data-field=events]').dataset.value === '0'");
    for handler in ["chain", "late"] {
        let seconds = |row: &Value| row["seconds"].as_f64().expect("a number");
        let before = world.lag(handler).remove(0);
        let last = browser.is("overview.time").as_f64();
        browser.until(&format!("overview.time > {last:?}", last = last.expect("a time")));
        let (events, age) = (cell(&mut browser, handler, "events"), cell(&mut browser, handler, "seconds"));
        let after = world.lag(handler).remove(0);
        assert_eq!((before["events"].as_f64(), after["events"].as_f64()), (Some(events), Some(events)));
        assert!((seconds(&before)..=seconds(&after)).contains(&age), "{before} {age} {after}");
        let state = format!("document.querySelector('tr[data-handler={handler}] .pill').textContent");
        assert_eq!(browser.is(&state), after["state"]);
    }
    let text = "document.querySelector('tr[data-handler=late] [data-field=events]').textContent";
    assert_eq!(browser.is(text), "1,234");
    assert_eq!(browser.is("document.querySelector('[data-sum=events]').textContent"), "1,234");
    let most = "document.querySelector('tr[data-handler=late] .most').textContent";
    assert_eq!(browser.is(most), "max 1,234", "a chart says what it is scaled by");
    assert_eq!(browser.is("document.querySelector('[data-sum=running]').textContent"), "1 running");
    pictures(&mut browser, "two-handlers");

    // Events come in, and the page moves by itself.
    world.publish(&orders(1234, 766)).await;
    browser.until("document.querySelector('tr[data-handler=late] [data-field=events]').textContent === '2,000'");
    assert_eq!(browser.errors, Vec::<String>::new());

    host.kill();
    browser.until("document.getElementById('lost').textContent.startsWith('connection lost for ')");
    assert_eq!(browser.is("document.getElementById('main').classList.contains('stale')"), true);
    browser.picture("connection-lost");
    let listen = address.to_string();
    let _again = world.host(&[("MILLSTREAM_HTTP", &listen)]);
    browser.until("document.getElementById('lost').hidden && document.getElementById('live').textContent === 'live'");
}

fn service(command: &Command) -> Option<Answer> {
    let order = command.payload["order"].as_str().unwrap_or_default();
    let kind = match command.kind.as_str() {
        "ReserveInventory" => "InventoryReserved",
        "ChargePayment" if order.starts_with("poor") => {
            return Some(("PaymentDeclined".to_owned(), json!({ "order": order, "reason": "<b>no</b> money" })));
        }
        "ChargePayment" => "PaymentCharged",
        "BookShipping" => "ShippingBooked",
        "SendConfirmation" => "ConfirmationSent",
        "ReleaseInventory" => "InventoryReleased",
        _ => return None,
    };
    Some((kind.to_owned(), json!({ "order": order })))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_others_wrote_stays_text_and_the_keyboard_leads_to_the_story() {
    let Some(mut browser) = Browser::start() else { return };
    let hostile = "<img src=x onerror=document.title='taken'>/\u{202e}?#%\"'";
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    world.deploy("order-fulfilment", "fulfil", &["--label", "</script><script>document.title='taken'</script>"]);
    let (_host, address) = web_host(&world, &[("MILLSTREAM_HOST", "<i>host</i>")]).await;
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", service).await;
    for order in ["fine", "poor", hostile] {
        let body = json!({
            "eventId": format!("placed-{}", order.len()), "eventType": "OrderPlaced", "aggregateId": order,
            "payload": { "order": order, "customer": "C42", "cents": 1200 },
        });
        world.jetstream.publish("orders.OrderPlaced", body.to_string().into()).await.unwrap().await.unwrap();
    }
    let ended = async || {
        let rows = world.ok(&["sagas", "fulfil", "--json"]);
        (rows.matches("\"status\":\"completed\"").count() == 2 && rows.contains("\"compensated\"")).then_some(())
    };
    until("all have ended", ended).await;

    browser.look(DESKTOP.0, DESKTOP.1, "light");
    browser.open(&page(address));
    browser.until("document.querySelector('tr[data-handler=fulfil] .name')");
    browser.press("/");
    assert_eq!(browser.is("document.activeElement.id"), "search");
    browser.press("ArrowDown");
    assert_eq!(browser.is("document.activeElement.className"), "name");
    browser.press("Enter");
    browser.until("document.querySelector('#details').textContent.includes('ORDERS')");
    browser.until("document.querySelector('ol.list').textContent.includes('runs now')");
    let stray = "[...document.getElementById('content').childNodes].filter((node) => node.nodeType !== 1).length";
    assert_eq!(browser.is(stray), 0, "what is not there on a host that only reads leaves no word behind");
    pictures(&mut browser, "handler");
    browser.is("document.querySelector('[data-status=all]').focus()");
    browser.press("Enter");
    browser.until("document.querySelectorAll('[data-key]').length === 3");
    let keys = browser.is("[...document.querySelectorAll('[data-key]')].map((one) => one.dataset.key)");
    let listed: Vec<Value> =
        world.ok(&["sagas", "fulfil", "--json"]).lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    let mut wanted: Vec<&str> = listed.iter().map(|row| row["key"].as_str().unwrap()).collect();
    let mut found: Vec<&str> = keys.as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
    wanted.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, wanted);
    pictures(&mut browser, "instances");
    let open = |key: &str| {
        format!(
            "[...document.querySelectorAll('[data-key]')].find((one) => one.dataset.key === {}).click()",
            json!(key)
        )
    };
    for (key, words) in [("poor", "<b>no</b> money"), (hostile, "ConfirmationSent")] {
        browser.is(&open(key));
        browser.until(&format!("document.querySelector('.story').textContent.includes({})", json!(words)));
        let events = browser.is("document.querySelectorAll('.story > li').length");
        let story: Value = serde_json::from_str(&world.ok(&["explain", "fulfil", key, "--json"])).unwrap();
        assert_eq!(events.as_u64(), story["events"].as_array().map(|events| events.len() as u64), "{story}");
        if key == "poor" {
            pictures(&mut browser, "story");
        }
        browser.press("Escape");
        browser.until("document.querySelector('[data-status=all]')");
        browser.is("document.querySelector('[data-status=all]').click()");
        browser.until("document.querySelectorAll('[data-key]').length === 3");
    }
    browser.press("Escape");
    browser.until("location.hash === '#/handler/fulfil'");
    browser.press("Escape");
    browser.until("document.getElementById('drawer').hidden");
    assert_eq!(browser.is("document.title"), "Millstream");
    assert_eq!(browser.is("document.querySelectorAll('img, i:not([class^=p-]), #content script').length"), 0);
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_handlers_are_found_in_an_instant() {
    let Some(mut browser) = Browser::start() else { return };
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(0, 100)).await;
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let digest = registry.put_module(&std::fs::read(module("order-chain")).expect("a module")).await.expect("stored");
    for number in 0..200 {
        let deployment = Deployment {
            digest,
            label: String::new(),
            subjects: vec![if number % 2 == 0 { "orders.>" } else { "orders.none" }.to_owned()],
            settings: Settings { streams: vec!["ORDERS".to_owned()], ..Settings::default() },
            desired: Desired::Paused,
            note: String::new(),
            signature: None,
        };
        registry.deploy(&format!("handler-{number:03}"), &deployment).await.expect("deployed");
    }
    let (_host, address) = web_host(&world, &[("MILLSTREAM_HOST", "here")]).await;
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&page(address));
    browser.until("document.querySelectorAll('tbody tr').length === 200");
    browser.until("document.querySelector('[data-sum=events]').textContent === '10,000'");
    let shown = "[...document.querySelectorAll('tbody tr')].filter((row) => !row.hidden)";
    // How many attributes a step changed within the table, and how many texts and rows. What it took is printed: how fast a machine
    // is, is no matter of a test.
    let step = |what: &str| {
        format!(
            "(() => {{ const look = new MutationObserver(() => {{}}), begun = performance.now();
               look.observe(document.querySelector('tbody'), {{ childList: true, attributes: true, characterData: true, subtree: true }});
               {what}; document.body.offsetHeight;
               const took = performance.now() - begun, all = look.takeRecords(); look.disconnect();
               const made = all.filter((one) => one.type !== 'attributes').length; return [all.length - made, made, took]; }})()"
        )
    };
    let mut took = Vec::new();
    let mut run = |browser: &mut Browser, what: &str| {
        let (changed, made, milliseconds): (u64, u64, f64) =
            serde_json::from_value(browser.is(&step(what))).expect("three numbers");
        took.push(milliseconds);
        (changed, made)
    };
    let filter = |text: &str| {
        format!(
            "const box = document.getElementById('search'); box.value = '{text}'; box.dispatchEvent(new Event('input'))"
        )
    };
    let sort = |by: &str| {
        format!("const by = document.getElementById('sort'); by.value = '{by}'; by.dispatchEvent(new Event('change'))")
    };
    // No news in between: each step has what it changes to itself.
    run(&mut browser, "window.really = take; take = () => {}");
    run(&mut browser, &sort("lag"));
    let lags =
        browser.is(&format!("{shown}.map((row) => Number(row.querySelector('[data-field=events]').dataset.value))"));
    let lags: Vec<u64> = serde_json::from_value(lags).expect("numbers");
    assert!(lags.len() == 200 && lags.is_sorted_by(|one, next| one >= next), "{lags:?}");
    run(&mut browser, &sort("name"));
    for (text, count) in [("17", 12), ("handler-0", 100), ("", 200), ("nothing", 0), ("orders handler-19", 10)] {
        let (changed, made) = run(&mut browser, &filter(text));
        assert_eq!(browser.is(&format!("{shown}.length")), count, "{text:?}");
        assert!(made == 0 && changed <= 202, "{text:?} hides rows and moves none: {changed} attributes, {made} others");
    }
    run(&mut browser, &filter(""));
    // What is told a second time makes no text and no row anew; only charts and bars move.
    let (_, made) = run(&mut browser, "really(overview)");
    assert_eq!(made, 0, "texts and rows made anew");
    run(&mut browser, "take = really");
    println!("200 handlers: a sort, filters, and an overview took {took:.1?} ms");
    pictures(&mut browser, "two-hundred-handlers");
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_without_handlers_says_what_to_do() {
    let Some(mut browser) = Browser::start() else { return };
    let world = World::new().await;
    let (_host, address) = web_host(&world, &[]).await;
    browser.look(DESKTOP.0, DESKTOP.1, "light");
    browser.open(&page(address));
    browser.until("!document.getElementById('none').hidden && document.getElementById('live').textContent === 'live'");
    assert!(browser.is("document.getElementById('none').textContent").to_string().contains("millstream deploy"));
    pictures(&mut browser, "no-handlers");
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_counts_as_unknown_and_what_fails_as_failing() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let bucket = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the bucket");
    bucket.put("broken", "no deployment at all".into()).await.expect("stored");
    let (_host, address) = web_host(&world, &[]).await;
    world.in_state("chain", "running").await;
    let told = get(address, "/api/overview").json();
    assert_eq!(told["sums"], json!({ "events": 0, "seconds": 0.0, "unknown": 1 }));
    let totals = |place: usize| {
        (told["handlers"][place]["handler"].clone(), told["handlers"][place]["totals"]["events"].clone())
    };
    assert_eq!([totals(0), totals(1)], [("broken".into(), Value::Null), ("chain".into(), 0.into())]);
    let Some(mut browser) = Browser::start() else { return };
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&page(address));
    browser.until("document.querySelector('[data-sum=unknown]').textContent === 'events, 1 unknown'");
    browser.until("document.querySelector('[data-sum=running]').textContent === '1 running, 1 failing'");
    let cell = "document.querySelector('tr[data-handler=broken] [data-field=events]').textContent";
    assert_eq!(browser.is(cell), "unknown");
    assert_eq!(browser.is("rows.get('broken').points.every((point) => point === null)"), true, "nor a line at 0");
    // As if the host ran it.
    let card =
        "(() => { const news = structuredClone(overview), [broken, chain] = news.handlers; broken.host = chain.host;
        take(news); return document.querySelector('#hosts li span').textContent; })()";
    browser.until(&format!("{card} === 'live · 2 handlers · 0 behind, 1 unknown'"));
    for (outcome, mark) in [("no-answer", "bad"), ("waits", "waits"), ("sent", "well")] {
        assert_eq!(browser.is(&format!("went({{ effects: [{{ outcome: '{outcome}' }}] }})")), mark, "{outcome}");
    }
    // Headings stand over what they head.
    let apart =
        "(() => { const left = (node) => { const range = document.createRange(); range.selectNodeContents(node);
        return range.getBoundingClientRect().left; };
        return Math.round(left(document.querySelector('th')) - left(document.querySelector('.name span'))); })()";
    assert_eq!(browser.is(apart), 0);
    browser.look(PHONE.0, PHONE.1, "dark");
    let lines = "Math.max(...[...document.querySelectorAll('.chips button')].map((chip) => {
        const range = document.createRange(); range.selectNodeContents(chip); return range.getClientRects().length; }))";
    assert_eq!(browser.is(lines), 1, "no chip breaks into two lines");
    pictures(&mut browser, "unknown-lag");
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_handler_has_no_trend_and_an_unknown_lag_no_figure() {
    let Some(mut browser) = Browser::start() else { return };
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let (_host, address) = web_host(&world, &[]).await;
    world.in_state("chain", "running").await;
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&format!("{}#/handler/chain", page(address)));
    browser.until("document.querySelector('#figures .scale') && drawn === 'handler/chain'");
    // As if its host said so. What is told of it: in the table, in the drawer, and beside the chart.
    let told = "((state, events) => { const news = structuredClone(overview), [chain] = news.handlers; chain.state = state;
        chain.totals = { events, seconds: events && 9, rates: { in_rate: 5, out_rate: 1, trend: 4, eta_seconds: null } };
        take(news);
        return [document.querySelector('tr[data-handler=chain] [data-field=eta]').textContent,
            [...document.querySelectorAll('#figures dt')].some((name) => name.textContent === 'Trend'),
            document.querySelector('#figures .scale').children[1].textContent]; })";
    let mut is = |state: &str, events: &str| browser.is(&format!("{told}('{state}', {events})"));
    assert_eq!(is("running", "7"), json!(["grows", true, "at most 7 behind"]));
    assert_eq!(is("paused", "7"), json!(["–", false, "at most 7 behind"]));
    assert_eq!(is("failing", "7"), json!(["grows", true, "at most 7 behind"]));
    assert_eq!(is("failing", "null"), json!(["–", true, ""]));
    assert_eq!(browser.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_acts_with_the_token_and_not_without() {
    let Some(mut browser) = Browser::start() else { return };
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let (_host, address) = web_host(&world, &[("MILLSTREAM_HTTP_TOKEN", "a token of some length")]).await;
    world.in_state("chain", "running").await;
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&format!("{}#/handler/chain", page(address)));
    let click = |text: &str| {
        format!("[...document.querySelectorAll('button')].find((one) => one.textContent === '{text}').click()")
    };
    for (token, said, looks) in [
        ("a wrong token of length", "token is missing or wrong", "note bad"),
        ("a token of some length", "paused on ", ""),
    ] {
        browser.until("[...document.querySelectorAll('button')].some((one) => one.textContent === 'Pause')");
        browser.is(&click("Pause"));
        browser.until("document.getElementById('ask').open");
        browser.is(&format!("document.getElementById('token').value = '{token}'"));
        browser.is(&click("Do it"));
        browser.until(&format!("document.getElementById('content').textContent.includes('{said}')"));
        assert_eq!(browser.is("document.querySelector('#content [role=status]').className"), looks, "{said}");
        browser.is("document.getElementById('content').scrollTop = 1e6");
        pictures(&mut browser, if looks.is_empty() { "acted" } else { "refused" });
    }
    world.in_state("chain", "paused").await;
    // A refusal is the browser's to tell; there is one.
    assert_eq!(browser.errors.len(), 1, "{:?}", browser.errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_keys_are_shown_with_their_reason_and_what_takes_them_up() {
    let world = parking::world().await;
    world.deploy("fragile", "fragile", &[]);
    let (key, hidden) = ("it's <b>parked</b>", "rtl\u{202e}evil\u{0}z");
    let (_host, address) = web_host(&world, &[]).await;
    parking::publish(
        &world,
        &[
            told("fine", 1),
            harmful(key, 2, "refuse"),
            told(key, 3),
            harmful("other", 4, "refuse"),
            harmful(hidden, 5, "refuse"),
        ],
    )
    .await;
    let parked = || world.ok(&["dead", "fragile", "--json"]).lines().count();
    until("all are parked", async || (parked() == 3).then_some(())).await;
    let asked = get(address, "/api/handlers/fragile/dead").json();
    let rows: Vec<Value> =
        world.ok(&["dead", "fragile", "--json"]).lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    assert_eq!(asked["keys"], 3);
    for (one, row) in asked["parked"].as_array().unwrap().iter().zip(&rows) {
        for field in ["key", "letter", "class", "reason", "units", "stream", "sequence"] {
            assert_eq!(one[field], row[field], "{field}");
        }
    }
    let Some(mut browser) = Browser::start() else { return };
    browser.look(DESKTOP.0, DESKTOP.1, "dark");
    browser.open(&format!("{}#/handler/fragile", page(address)));
    browser.until("document.getElementById('dead')?.textContent.startsWith('3 keys parked')");
    browser.is("document.getElementById('dead').click()");
    browser.until("document.querySelectorAll('li[data-key]').length === 3");
    let shown = browser.is("document.querySelector('#content ul').textContent");
    let command = r"millstream redrive fragile --key 'it'\''s <b>parked</b>'";
    let letter = rows.iter().find(|row| row["key"] == hidden).expect("its row")["letter"].to_string();
    let by_letter = format!("millstream redrive fragile --letter {letter}");
    for words in [command, "told to refuse", "2 events", "millstream redrive fragile --key other", &by_letter] {
        assert!(shown.as_str().unwrap().contains(words), "{words}: {shown}");
    }
    let apart = "[...document.querySelectorAll('li[data-key]')].every((row) => {
        const [key, fault, reason] = [...row.children].map((node) => node.getBoundingClientRect());
        return key.right < fault.left && fault.bottom <= reason.top; })";
    assert_eq!(browser.is(apart), true, "key, class and reason stand apart");
    pictures(&mut browser, "parked");
    assert_eq!(browser.errors, Vec::<String>::new());
    // What the command names is what is shown beside it.
    world.ok(&["discard", "fragile", "--letter", &letter, "--reason", "nobody needs it", "--yes"]);
    assert!(parked() == 2 && !world.ok(&["dead", "fragile", "--json"]).contains("evil"), "the letter names its key");
}
