//! Numbers, on request: `cargo test -p edgefleet-controller backup::tests::size -- --ignored --nocapture`

use super::*;
use crate::desired::DESIRED;
use serde_json::json;
use std::{io::Cursor, time::Instant};

const DEVICES: u64 = 10_000;

/// Documents of about the size that enrolled devices with a rollout behind them have.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn ten_thousand_devices() {
    let home = Home::new().await;
    let text = |seed, len| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, body(seed, len));
    for first in (0..DEVICES).step_by(500) {
        let mut put = Transaction::new();
        for number in first..first + 500 {
            let id = format!("dev-{number:012}");
            let device = json!({"id": id, "name": format!("camera {number}"), "labels": {"site": "plant-7"},
                "key": text(number, 91), "serial": text(number, 20), "not_after": at(number).to_string()});
            let status = json!({"device": id, "online": true, "facts": {"arch": "aarch64", "memory": number},
                "reported": {"generation": number, "boot": text(number, 16), "slots": {"digits": {"phase": "committed"}}}});
            let desired = json!({"desired": {"device": id, "generation": number, "slots": {"digits": {"active": text(number, 32)}}},
                "envelope": text(number, 900)});
            for (kind, value) in [(THING, device), (Kind::new("device-status"), status), (DESIRED, desired)] {
                put = put.put_json(kind, id.as_str(), Expect::Any, &value).unwrap();
            }
        }
        home.parts.store.commit(put).await.unwrap();
    }
    let before = Instant::now();
    let order = Order { cost: Cost::DEFAULT, ..order(false) };
    let (summary, file) = write(&home.parts, order, Vec::new()).await.unwrap();
    let made = before.elapsed();
    let before = Instant::now();
    verify(&*file, &phrase()).unwrap();
    let verified = before.elapsed();
    let before = Instant::now();
    restore(Cursor::new(file), restore_order(&home.beside("new"))).await.unwrap();
    let restored = before.elapsed();
    println!(
        "{} documents, {} log entries: {} bytes; made in {made:?}, verified in {verified:?}, restored in {restored:?}",
        summary.documents, summary.log_entries, summary.bytes
    );
}
