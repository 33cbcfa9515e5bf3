//! The link against a real broker: connect, lose, come back, say good-bye, be taken over.

mod mosquitto;

use bytes::Bytes;
use edgefleet_agent::{
    link::{
        Link, LinkConfig, LinkDown, LinkEvent, LinkHandle, QoS,
        sender::{Cost, Signal, send_telemetry},
    },
    store::outbox::{Bounds, Outbox},
};
use edgefleet_shared::{
    desired::{Metered, Settings, TelemetrySettings},
    ids::{BootId, DeviceId},
    message::Presence,
    telemetry::{Ack, BootAck, RecordBody, TelemetryBatch},
    topics::{Channel, MAX_PAYLOAD_BYTES, TRUST_HEAD},
};
use mosquitto::{Broker, DEADLINE, Observer};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

fn device() -> DeviceId {
    "dev-1".parse().unwrap()
}

struct Device {
    link: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
    task: JoinHandle<()>,
}

impl Device {
    fn start(broker: &Broker, boot: u8) -> Self {
        let config = LinkConfig {
            host: "localhost".into(),
            port: broker.port,
            device: device(),
            boot: BootId::from_random([boot; 16]),
            keep_alive: Duration::from_secs(30),
        };
        let (link, events, task) = Link::start(config, broker.tls("dev-1"));
        Self { link, events, task }
    }

    async fn wait_for(&mut self, wanted: impl Fn(&LinkEvent) -> bool) -> LinkEvent {
        timeout(DEADLINE, async {
            loop {
                let event = self.events.recv().await.expect("the link ended");
                if wanted(&event) {
                    return event;
                }
            }
        })
        .await
        .expect("the event did not come")
    }

    async fn connected(&mut self, session: u64) {
        let wanted = LinkEvent::Connected { session };
        self.wait_for(|event| *event == wanted).await;
    }
}

async fn presence(observer: &mut Observer, online: bool) -> Presence {
    let topic = Channel::Presence.of(&device());
    let message = observer
        .wait_for(|m| {
            m.topic == topic
                && serde_json::from_slice::<Presence>(&m.payload).is_ok_and(|p| p.online == online)
        })
        .await;
    serde_json::from_slice(&message.payload).unwrap()
}

#[tokio::test]
async fn messages_of_every_channel_and_size_pass_both_ways() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut device_side = Device::start(&broker, 1);
    device_side.connected(1).await;
    assert_eq!(presence(&mut observer, true).await.boot, BootId::from_random([1; 16]));

    let large = vec![b'x'; MAX_PAYLOAD_BYTES - 100];
    type Wrap = fn(Bytes) -> LinkEvent;
    let downward: [(String, Wrap); 6] = [
        (Channel::Desired.of(&device()), LinkEvent::Desired),
        (Channel::Blocks.of(&device()), LinkEvent::Blocks),
        (Channel::Command.of(&device()), LinkEvent::Command),
        (Channel::Ack.of(&device()), LinkEvent::Ack),
        (Channel::Label.of(&device()), LinkEvent::Label),
        (TRUST_HEAD.to_owned(), LinkEvent::TrustHead),
    ];
    for (topic, wrap) in downward {
        observer.publish(&topic, large.clone()).await;
        let wanted = wrap(Bytes::from(large.clone()));
        device_side.wait_for(|event| *event == wanted).await;
    }
    for channel in [Channel::Reported, Channel::Telemetry, Channel::Fetch, Channel::Reply] {
        device_side.link.publish(channel, large.clone(), false, QoS::AtLeastOnce).await.unwrap();
        let message = observer.wait_for(|m| m.topic == channel.of(&device())).await;
        assert_eq!(message.payload.len(), large.len(), "{channel}");
    }
    let too_large = vec![0; MAX_PAYLOAD_BYTES + 1];
    let refused = device_side.link.publish(Channel::Reported, too_large, false, QoS::AtLeastOnce).await;
    assert!(matches!(refused, Err(LinkDown::TooLarge { .. })));
    device_side.link.publish(Channel::Reported, "still here", false, QoS::AtMostOnce).await.unwrap();
    observer.wait_for(|m| &m.payload[..] == b"still here").await;
}

#[tokio::test]
async fn a_broker_that_forgot_everything_is_subscribed_to_again() {
    let broker = Broker::start().await;
    let mut device_side = Device::start(&broker, 1);
    device_side.connected(1).await;
    broker.stop();
    device_side.wait_for(|event| matches!(event, LinkEvent::Disconnected { .. })).await;
    let refused = device_side.link.publish(Channel::Reported, "x", false, QoS::AtLeastOnce).await;
    assert_eq!(refused, Err(LinkDown::Offline));
    broker.restart().await;
    device_side.connected(2).await;
    let mut observer = Observer::connect(&broker).await;
    presence(&mut observer, true).await; // retained anew
    observer.publish(&Channel::Desired.of(&device()), "after the restart").await;
    device_side.wait_for(|event| *event == LinkEvent::Desired("after the restart".into())).await;
}

#[tokio::test]
async fn a_killed_agent_is_announced_by_its_will_and_a_closed_one_by_itself() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let mut first = Device::start(&broker, 1);
    first.connected(1).await;
    first.task.abort(); // the socket closes without a word, as when a process is killed
    assert_eq!(presence(&mut observer, false).await.reason, "connection lost");

    let mut second = Device::start(&broker, 2);
    second.connected(1).await;
    second.link.publish(Channel::Reported, "last words", false, QoS::AtLeastOnce).await.unwrap();
    second.link.close("stopped by SIGTERM");
    timeout(DEADLINE, second.task).await.unwrap().unwrap();
    observer.wait_for(|m| &m.payload[..] == b"last words").await;
    let gone = presence(&mut observer, false).await;
    assert_eq!((gone.reason.as_str(), gone.boot), ("stopped by SIGTERM", BootId::from_random([2; 16])));
}

#[tokio::test]
async fn closing_ends_a_link_that_never_connected() {
    let broker = Broker::start().await;
    broker.stop();
    let mut device_side = Device::start(&broker, 1);
    device_side.wait_for(|event| matches!(event, LinkEvent::Disconnected { .. })).await;
    let started = Instant::now();
    device_side.link.close("stopped");
    timeout(DEADLINE, device_side.task).await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_new_certificate_is_used_at_once() {
    let broker = Broker::start().await;
    let mut device_side = Device::start(&broker, 1);
    device_side.connected(1).await;
    device_side.link.reconnect(broker.tls("dev-1"));
    device_side.connected(2).await;
}

#[tokio::test]
async fn two_agents_with_one_identity_do_not_fight() {
    let broker = Broker::start().await;
    let mut devices = [Device::start(&broker, 1), Device::start(&broker, 2)];
    let takeovers = |devices: &[Device; 2]| -> Vec<u64> {
        devices.iter().map(|d| d.link.stats().takeovers.load(Ordering::Relaxed)).collect()
    };
    // They throw each other out until one sees it and steps back.
    let patient = timeout(DEADLINE, async {
        loop {
            let [a, b] = &mut devices;
            tokio::select! {
                event = a.events.recv() => drop(event.unwrap()),
                event = b.events.recv() => drop(event.unwrap()),
            }
            if let Some(at) = takeovers(&devices).iter().position(|n| *n > 0) {
                return at;
            }
        }
    })
    .await
    .expect("nobody stepped back");
    let winner = 1 - patient;
    let mut observer = Observer::connect(&broker).await;
    timeout(DEADLINE, async {
        while devices[winner].link.publish(Channel::Reported, "mine", false, QoS::AtLeastOnce).await.is_err()
        {
            devices[winner].events.recv().await.unwrap();
        }
    })
    .await
    .unwrap();
    observer.wait_for(|m| &m.payload[..] == b"mine").await;
    assert_eq!(
        devices[patient].link.publish(Channel::Reported, "not mine", false, QoS::AtLeastOnce).await,
        Err(LinkDown::Offline)
    );
    let connects = |d: &Device| d.link.stats().connects.load(Ordering::Relaxed);
    assert!(connects(&devices[0]) + connects(&devices[1]) <= 5);
}

#[tokio::test]
async fn telemetry_is_sent_until_the_controllers_store_has_it() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let boot = BootId::from_random([3; 16]);
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot, Bounds::default()).unwrap();
    let dropped = |records| RecordBody::Dropped { records, reason: "made for this test".into() };
    for n in 1..=600 {
        outbox.append_soon(dropped(n)).unwrap();
        if n % 300 == 0 {
            outbox.flush().await;
        }
    }
    let mut device_side = Device::start(&broker, 3);
    let (signals, inbox) = mpsc::channel(8);
    let (_settings, settings) = watch::channel(Settings::default());
    let cost = Cost { settings, metered: false };
    tokio::spawn(send_telemetry(outbox.clone(), device_side.link.clone(), device(), inbox, cost));
    device_side.connected(1).await;
    signals.send(Signal::Connected).await.unwrap();
    let topic = Channel::Telemetry.of(&device());

    let first = observer.wait_for(|m| m.topic == topic).await;
    let first = TelemetryBatch::parse(&first.payload).unwrap();
    assert_eq!((first.device.clone(), first.records[0].seq), (device(), 1));
    // Not acknowledged: the same again.
    signals.send(Signal::Again).await.unwrap();
    let again = observer.wait_for(|m| m.topic == topic).await;
    assert_eq!(TelemetryBatch::parse(&again.payload).unwrap().records, first.records);
    signals.send(Signal::Ack("not json".into())).await.unwrap();
    // Acknowledged, twice each: it goes on, in order, until nothing is left.
    let mut upto = first.records.last().unwrap().seq;
    loop {
        let ack = Ack { schema: 1, boots: vec![BootAck { boot, contiguous: upto, extra: vec![] }] };
        for _ in 0..2 {
            let raw = serde_json::to_vec(&ack).unwrap();
            signals.send(Signal::Ack(raw.into())).await.unwrap();
        }
        if upto == 600 {
            break;
        }
        let next = observer.wait_for(|m| m.topic == topic).await;
        let next = TelemetryBatch::parse(&next.payload).unwrap();
        if next.records.last().unwrap().seq > upto {
            assert_eq!(next.records[0].seq, upto + 1);
            upto = next.records.last().unwrap().seq;
        }
    }
    timeout(DEADLINE, async {
        while !outbox.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(device_side.link.stats().malformed.load(Ordering::Relaxed), 1);
    // A new record goes out by itself.
    outbox.append(dropped(7)).await.unwrap();
    let last = observer.wait_for(|m| m.topic == topic).await;
    assert_eq!(TelemetryBatch::parse(&last.payload).unwrap().records[0].seq, 601);
}

/// Labels that were joined; they are not essential.
fn labels(n: u64) -> RecordBody {
    serde_json::from_value(serde_json::json!({
        "kind": "labels", "slot": "digits", "bundle": "digits@1",
        "digest": edgefleet_shared::digest::BundleDigest::of(b"m"),
        "attempt": edgefleet_shared::ids::AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        "bucket": edgefleet_shared::time::Timestamp::from_secs(n), "source": "local", "matched": n, "correct": 0
    }))
    .unwrap()
}

#[tokio::test]
async fn a_metered_link_carries_the_essentials_until_the_settings_say_otherwise() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let boot = BootId::from_random([4; 16]);
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot, Bounds::default()).unwrap();
    outbox.append_soon(labels(1)).unwrap();
    outbox.append_soon(RecordBody::Dropped { records: 1, reason: "made for this test".into() }).unwrap();
    outbox.flush().await;
    let mut device_side = Device::start(&broker, 4);
    let (signals, inbox) = mpsc::channel(8);
    let telemetry = TelemetrySettings { metered: Metered::Essential, ..Default::default() };
    let (policy, settings) = watch::channel(Settings { telemetry, ..Settings::default() });
    let cost = Cost { settings, metered: true };
    tokio::spawn(send_telemetry(outbox.clone(), device_side.link.clone(), device(), inbox, cost));
    device_side.connected(1).await;
    signals.send(Signal::Connected).await.unwrap();
    let topic = Channel::Telemetry.of(&device());
    let numbers = |payload: &[u8]| -> Vec<u64> {
        TelemetryBatch::parse(payload).unwrap().records.iter().map(|record| record.seq).collect()
    };
    assert_eq!(numbers(&observer.wait_for(|m| m.topic == topic).await.payload), [2]);
    policy.send_modify(|settings| settings.telemetry.metered = Metered::Send);
    signals.send(Signal::Again).await.unwrap();
    assert_eq!(numbers(&observer.wait_for(|m| m.topic == topic).await.payload), [1, 2]);
}

/// The day's bytes: no message of windows goes beyond them, essentials go all the same, and what waits is there when
/// there is room again.
#[tokio::test]
async fn a_spent_budget_holds_labels_back_and_lets_essentials_pass() {
    let broker = Broker::start().await;
    let mut observer = Observer::connect(&broker).await;
    let dir = tempfile::tempdir().unwrap();
    let boot = BootId::from_random([5; 16]);
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot, Bounds::default()).unwrap();
    for n in 0..40 {
        outbox.append_soon(labels(n)).unwrap();
    }
    outbox.flush().await;
    let mut device_side = Device::start(&broker, 5);
    let (signals, inbox) = mpsc::channel(8);
    // Room for some of them, compressed together.
    let size = |records| {
        let batch = TelemetryBatch { schema: 1, device: device(), records };
        batch.to_bytes().unwrap().len()
    };
    let all = outbox.peek(1 << 20, 256).await;
    let budget = usize::midpoint(size(all[..1].to_vec()), size(all));
    let telemetry = TelemetrySettings { bytes_per_day: budget as u64, ..Default::default() };
    let (policy, settings) = watch::channel(Settings { telemetry, ..Settings::default() });
    let cost = Cost { settings, metered: false };
    tokio::spawn(send_telemetry(outbox.clone(), device_side.link.clone(), device(), inbox, cost));
    device_side.connected(1).await;
    signals.send(Signal::Connected).await.unwrap();
    let topic = Channel::Telemetry.of(&device());
    let first = observer.wait_for(|m| m.topic == topic).await.payload;
    assert!(first.len() <= budget, "{}", first.len());
    let records = TelemetryBatch::parse(&first).unwrap().records;
    assert!((1..40).contains(&records.len()) && records[0].seq == 1, "{}", records.len());
    let last = records.last().unwrap().seq;
    // Acknowledged; what is left of the day is too little for the rest, not for the essential.
    let ack = Ack { schema: 1, boots: vec![BootAck { boot, contiguous: last, extra: vec![] }] };
    signals.send(Signal::Ack(serde_json::to_vec(&ack).unwrap().into())).await.unwrap();
    let mut spent = first.len();
    outbox.append(RecordBody::Dropped { records: 1, reason: "made for this test".into() }).await.unwrap();
    let essential = loop {
        let payload = observer.wait_for(|m| m.topic == topic).await.payload;
        let records = TelemetryBatch::parse(&payload).unwrap().records;
        if records.iter().any(|record| matches!(record.body, RecordBody::Dropped { .. })) {
            break records;
        }
        // A last small one may fit.
        spent += payload.len();
        assert!(spent <= budget, "{spent}");
        let contiguous = records.last().unwrap().seq;
        let ack = Ack { schema: 1, boots: vec![BootAck { boot, contiguous, extra: vec![] }] };
        signals.send(Signal::Ack(serde_json::to_vec(&ack).unwrap().into())).await.unwrap();
    };
    assert_eq!(essential.iter().map(|record| record.seq).collect::<Vec<_>>(), [41]);
    let waiting = outbox.len();
    policy.send_modify(|settings| settings.telemetry.bytes_per_day = 0);
    signals.send(Signal::Again).await.unwrap();
    let rest = TelemetryBatch::parse(&observer.wait_for(|m| m.topic == topic).await.payload).unwrap().records;
    assert_eq!((rest.len(), rest.last().unwrap().seq), (waiting, 41));
}
