//! Eight hours of two sites: every kind of row, and of each what is hard to read.

use crate::projection::{Batch, Projection};
use crate::store::{Identity, Store, StoreOptions};
use crate::tables::TableError;
use crate::test_log::TestLog;
use fieldstream_shared::change::{Change, Edit, Primitive, Version};
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Body;
use fieldstream_shared::event::EventBody;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::value::{Map, Value};
use serde_json::{Value as Json, json};
use std::path::Path;

const START_US: u64 = 1_790_000_000_000_000;
const MINUTE_US: u64 = 60_000_000;
const LANES: u16 = 2;

/// The two lanes' logs, and what the documents were after each change.
pub(super) struct Scene {
    logs: Vec<TestLog>,
    minute: u64,
    /// Document, version and body after every change, in order.
    pub(super) states: Vec<(String, Version, Body)>,
}

/// JSON with bytes as `{"$bin": hex}`.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Object(map) => match (map.len(), map.get("$bin").and_then(Json::as_str)) {
            (1, Some(hex)) => {
                let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).unwrap() as u8).collect();
                Value::Bin(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
            }
            _ => Value::Map(map.iter().map(|(key, json)| (key.clone(), value(json))).collect()),
        },
        Json::Array(items) => Value::Array(items.iter().map(value).collect()),
        _ => Value::from_json(json).unwrap(),
    }
}

fn map(json: Json) -> Map {
    let Value::Map(map) = value(&json) else { panic!("{json}") };
    map
}

fn edit(position: u64, deleted: u64, inserted: &str) -> Edit {
    Edit { position, deleted, inserted: inserted.to_owned() }
}

fn at(path: &[&str], json: Json) -> Primitive {
    Primitive::SetAt(path.iter().map(|key| (*key).to_owned()).collect(), value(&json))
}

impl Scene {
    /// Plays it all.
    pub(super) fn play() -> Scene {
        let logs = (0..LANES).map(|lane| TestLog::new(lane, LANES)).collect();
        let mut scene = Scene { logs, minute: 0, states: Vec::new() };
        scene.boiler();
        scene.notes();
        scene.alarm();
        scene.display();
        scene.rejected();
        scene
    }

    fn log(&mut self, document: &str) -> &mut TestLog {
        let now_us = START_US + self.minute * MINUTE_US;
        let log = &mut self.logs[usize::from(Partition::of(document).lane(LANES))];
        (log.clock_us, log.received_at_us) = (now_us, now_us - 1000);
        log
    }

    /// A change at a minute, as an event batch of its own.
    fn change(&mut self, minute: u64, client: &str, document: &str, change: Change) {
        self.minute = minute;
        let log = self.log(document);
        log.update(client, document, change);
        log.cut();
        let after = log.expected(document);
        let version = Version { revision: after.revision, state_hash: after.hash(), time_us: after.time_us };
        self.states.push((document.to_owned(), version, after.body));
    }

    fn boiler(&mut self) {
        let new = json!({
            "zone": "B", "on": true, "setpoint_c": 60.0, "serial": u64::MAX, "offset": -5, "lowest": i64::MIN,
            "calibration": {"$bin": "00c1ff"}, "burner": {"fuel": "gas", "starts": 1}, "alarms": [1, "two", null, {}],
        });
        let boiler = "site7/boiler-1";
        self.change(0, "panel-3", boiler, vec![Primitive::SetMap(map(new))]);
        self.change(1, "panel-3", boiler, vec![Primitive::Merge(map(json!({"setpoint_c": 61.5, "note": null})))]);
        for n in 0..12 {
            let measured = json!({"temperature_c": 58.25 + 0.5 * n as f64, "burner": {"starts": n + 2}});
            self.change(10 + 20 * n, "gateway-7", boiler, vec![Primitive::Merge(map(measured))]);
        }
        let cut = json!({"burner": {"fuel": null}, "alarms": null, "zone": {"name": "B", "floor": 2}});
        self.change(251, "tablet-é", boiler, vec![Primitive::Merge(map(cut))]);
        let set = vec![at(&["burner", "last", "reason"], json!("flame out")), at(&["offset"], json!(null))];
        self.change(252, "tablet-é", boiler, set);
        // A structured document that begins with a value at a path; one that begins with a merge.
        self.change(20, "panel-4", "site7/pump-2", vec![at(&["speed", "rpm"], json!(1450))]);
        self.change(400, "panel-4", "site8/pump-1", vec![Primitive::Merge(map(json!({"on": false, "old": null})))]);
    }

    fn notes(&mut self) {
        let notes = "site7/notes";
        self.change(5, "panel-3", notes, vec![Primitive::Append("Früh: añ𝄞z\n".into())]);
        self.change(95, "tablet-é", notes, vec![Primitive::Append("10 °C, 日本語 ok\n".into())]);
        let edits = vec![edit(8, 1, "ß"), edit(9, 0, "🙂🙂"), edit(0, 4, "Shift 1")];
        self.change(130, "panel-3", notes, vec![Primitive::Splice(edits)]);
        let both = vec![Primitive::Splice(vec![edit(0, 5, "SHIFT")]), Primitive::Append("– panel-3\n".into())];
        self.change(310, "panel-3", notes, both);
        // Every length of MessagePack text: 31 and 32, 255 and 256, 65,536 bytes would be the next.
        for (n, length) in [31, 32, 255, 256].into_iter().enumerate() {
            let name = format!("site8/length-{length}");
            self.change(60 + n as u64, "panel-4", &name, vec![Primitive::SetText("x".repeat(length))]);
        }
    }

    fn alarm(&mut self) {
        let alarm = "site7/alarm";
        self.change(200, "panel-4", alarm, vec![Primitive::SetText("pressure low".into())]);
        self.change(215, "panel-4", alarm, vec![Primitive::Delete]);
        self.change(330, "gateway-7", alarm, vec![Primitive::Append("pressure high".into())]);
        self.change(345, "panel-4", alarm, vec![Primitive::Delete]);
        // Deleted and made anew as another kind in one change.
        let anew = vec![Primitive::SetText("later".into()), Primitive::Delete, Primitive::Merge(map(json!({"n": 1})))];
        self.change(350, "gateway-7", "site8/anew", anew);
    }

    /// A board drawn over and over: so much history that rows tell the whole state and old ones go.
    fn display(&mut self) {
        let display = "site8/display";
        let board = |n: u64| format!("{n:>4} {}", ["░", "▒", "▓"][n as usize % 3].repeat(150));
        self.change(401, "gateway-8", display, vec![Primitive::SetText(board(0))]);
        for n in 1..70 {
            let change = Primitive::Splice(vec![edit(0, 155, &board(n))]);
            self.change(401 + n, "gateway-8", display, vec![change]);
        }
    }

    /// Refused instructions, and dead ones.
    fn rejected(&mut self) {
        let all = [
            (472, "panel-3", "site7/boiler-1", Code::CONFLICT),
            (473, "panel-3", "site7/boiler-1", Code::CONFLICT),
            (474, "tablet-é", "site7/alarm", Code::NOT_FOUND),
            (475, "gateway-8", "site8/display", Code::OUT_OF_RANGE),
        ];
        for (minute, client, document, code) in all {
            self.minute = minute;
            self.log(document).push(client, document, EventBody::Refused(code));
            self.log(document).cut();
        }
        self.minute = 476;
        let panicked = EventBody::Dead {
            code: Code::HANDLER_PANICKED,
            reason: "handler `calibrate` panicked".to_owned(),
            raw: vec![0x93, 0x01, 0xc1],
        };
        self.log("site7/boiler-1").push("panel-3", "site7/boiler-1", panicked);
        for document in ["site7/boiler-1", "site8/display"] {
            self.log(document).dead(document);
            self.log(document).dead(document);
            self.log(document).cut();
        }
    }

    /// Stores it: two commits, the second of them with what is left of either lane.
    pub(super) fn store(&self, directory: &Path) -> Store {
        let options = StoreOptions {
            directory: directory.to_owned(),
            file_mode: 0o664,
            map_bytes: 1 << 20,
            history_revisions: 20,
        };
        let identity = Identity {
            lanes: LANES,
            log_id: 0x1122_3344_5566_7788,
            new_storer: 0x8f3a_0c55_12de_7701,
            now_us: START_US,
        };
        let store = Store::open(options, &identity).unwrap();
        let mut projection = Projection::new(store.checkpoints().to_vec());
        for (part, minutes) in [(0, 300), (1, 480)] {
            for (lane, log) in (0..).zip(&self.logs) {
                let half = log.messages.len() / 2;
                let (first, messages) = match part {
                    0 => (1, &log.messages[..half]),
                    _ => (half as u64 + 1, &log.messages[half..]),
                };
                for (sequence, message) in (first..).zip(messages) {
                    let batch = Batch::decode::<TableError>(lane, sequence, message).unwrap();
                    projection.handle(batch, &store.read().unwrap()).unwrap();
                }
            }
            store.commit(&projection.writes(START_US + minutes * MINUTE_US)).unwrap();
            projection.committed();
        }
        store
    }
}
