//! The rows of the contract. A broker that denies silently (Mosquitto grants any subscription and
//! acknowledges any publish) is held to the same rule as one that says no: nothing is delivered.

use crate::{
    device::{Device, Dial, PATIENCE, Raw, subscribe_packet},
    home::{Home, id, resident},
    pki::Pki,
};
use edgefleet_controller::broker::{BrokerEvent, DisconnectReason, MAX_PACKET_BYTES};
use edgefleet_shared::topics::{Channel, DEVICE_RULES, Direction, TRUST_HEAD};
use std::time::{Duration, Instant};
use tokio::{net::TcpStream, time::timeout};

fn topic(device: &str, channel: Channel) -> String {
    channel.of(&id(device))
}

fn channels(direction: Direction) -> impl Iterator<Item = Channel> {
    DEVICE_RULES.into_iter().filter(move |(_, d)| *d == direction).map(|(channel, _)| channel)
}

/// What `device` receives until `fence`, published by the controller on its own `command`, arrives.
async fn received_before_fence(home: &Home, device: &mut Device, name: &str) -> Vec<String> {
    home.publish(&topic(name, Channel::Command), "fence", false).await;
    let mut topics: Vec<_> = device
        .messages_until(&topic(name, Channel::Command))
        .await
        .into_iter()
        .map(|(topic, _)| topic)
        .collect();
    topics.pop();
    topics
}

pub async fn only_own_certificates_get_in(home: &mut Home) {
    let stranger = Pki::new();
    for (who, tls) in [
        ("nobody", home.pki.client(None)),
        ("a device of another CA", home.pki.client(Some(&stranger.device("dev-1")))),
        ("an expired device", home.pki.client(Some(&home.pki.issue("dev-1", "dev-1", -60)))),
    ] {
        let result = Device::dial(home, Dial { client_id: "dev-1", tls, will: None, clean: true }).await;
        assert!(result.is_err(), "{who} got in");
    }
    Device::connect(home, "dev-1").await;
}

pub async fn a_client_id_cannot_be_borrowed(home: &mut Home) {
    let mut victim = Device::connect(home, "dev-b").await;
    let tls = home.pki.client(Some(&home.pki.device("dev-a")));
    // The embedded broker refuses, Mosquitto replaces the client id by the certificate's name.
    let thief = Device::dial(home, Dial { client_id: "dev-b", tls, will: None, clean: true }).await;
    assert_eq!(thief.is_err(), home.is_embedded());
    victim.publish(&topic("dev-b", Channel::Reply), "still me").await.unwrap();
    home.message("dev-b", Channel::Reply).await;
    if let Ok(mut thief) = thief {
        thief.publish(&topic("dev-b", Channel::Reply), "stolen").await.unwrap();
        thief.publish(&topic("dev-a", Channel::Reply), "fence").await.unwrap();
        home.message("dev-a", Channel::Reply).await;
        assert!(!home.payloads().contains(&"stolen".to_owned()));
    }
    assert!(victim.is_connected());
}

pub async fn a_revoked_serial_is_refused(home: &mut Home) {
    let (lost, renewed) = (home.pki.device("dev-1"), home.pki.device("dev-1"));
    let device = Device::connect_as(home, "dev-1", &lost).await.unwrap();
    device.say_goodbye().await;
    if home.is_embedded() {
        home.fleet.revoke(&lost.serial);
    } else {
        home.fleet.issued.lock().insert(id("dev-1"), vec![lost.serial.clone()]);
        home.broker.revoke(&id("dev-1")).await.unwrap();
    }
    assert!(Device::connect_as(home, "dev-1", &lost).await.is_err());
    Device::connect_as(home, "dev-1", &renewed).await.unwrap();
}

pub async fn each_channel_works_in_its_one_direction_for_its_owner(home: &mut Home) {
    let mut device = Device::connect(home, "dev-a").await;
    for channel in channels(Direction::Publish) {
        device.publish(&topic("dev-a", channel), format!("up {channel}")).await.unwrap();
        assert_eq!(home.message("dev-a", channel).await, format!("up {channel}"));
    }
    assert!(device.subscribe(&topic("dev-a", Channel::Command)).await);
    for down in channels(Direction::Subscribe).map(|c| topic("dev-a", c)).chain([TRUST_HEAD.to_owned()]) {
        assert!(device.subscribe(&down).await, "{down}");
        home.publish(&down, "down", false).await;
        assert!(device.messages_until(&down).await.len() == 1, "{down}");
    }
    // The other way round: publishing what it reads, reading what it publishes.
    for channel in channels(Direction::Publish) {
        let granted = device.subscribe(&topic("dev-a", channel)).await;
        assert!(!(granted && home.is_embedded()), "{channel}");
        device.publish(&topic("dev-a", channel), "echo").await.unwrap();
        home.message("dev-a", channel).await;
    }
    for down in channels(Direction::Subscribe).map(|c| topic("dev-a", c)).chain([TRUST_HEAD.to_owned()]) {
        device.publish(&down, "forged").await.unwrap();
    }
    assert_eq!(received_before_fence(home, &mut device, "dev-a").await, Vec::<String>::new());
}

pub async fn foreign_channels_are_closed_in_both_directions(home: &mut Home) {
    let mut a = Device::connect(home, "dev-a").await;
    let mut b = Device::connect(home, "dev-b").await;
    assert!(a.subscribe(&topic("dev-a", Channel::Command)).await);
    for channel in channels(Direction::Subscribe) {
        assert!(b.subscribe(&topic("dev-b", channel)).await);
    }
    for channel in Channel::ALL {
        let granted = a.subscribe(&topic("dev-b", channel)).await;
        assert!(!(granted && home.is_embedded()), "dev-a reads {channel} of dev-b");
        a.publish(&topic("dev-b", channel), "forged").await.unwrap();
        a.publish_retained(&topic("dev-b", channel), "forged").await;
    }
    a.publish(TRUST_HEAD, "forged").await.unwrap();
    for channel in channels(Direction::Publish) {
        b.publish(&topic("dev-b", channel), "genuine").await.unwrap();
        assert_eq!(home.message("dev-b", channel).await, "genuine");
    }
    for channel in channels(Direction::Subscribe).filter(|channel| *channel != Channel::Command) {
        home.publish(&topic("dev-b", channel), "genuine", false).await;
        assert_eq!(b.messages_until(&topic("dev-b", channel)).await.pop().unwrap().1, "genuine");
    }
    assert_eq!(received_before_fence(home, &mut a, "dev-a").await, Vec::<String>::new());
    assert_eq!(received_before_fence(home, &mut b, "dev-b").await, Vec::<String>::new());
    assert!(!home.payloads().contains(&"forged".to_owned()));
}

pub async fn wildcards_and_shared_filters_deliver_nothing(home: &mut Home) {
    let mut spy = Device::connect(home, "dev-a").await;
    let mut other = Device::connect(home, "dev-b").await;
    home.publish(&topic("dev-b", Channel::Desired), "secret", true).await;
    assert!(spy.subscribe(&topic("dev-a", Channel::Command)).await);
    for filter in [
        "#",
        "+/#",
        "edgefleet/#",
        "edgefleet/v1/devices/+/desired",
        "edgefleet/v1/devices/dev-b/#",
        "edgefleet/v1/devices/dev-b/+",
        "edgefleet/v1/+/dev-b/desired",
        "$share/g/edgefleet/v1/devices/dev-b/desired",
        "$share/g/edgefleet/v1/devices/+/desired",
        "$share/g/#",
        "$SYS/#",
    ] {
        let granted = spy.subscribe(filter).await;
        assert!(!(granted && home.is_embedded()), "{filter}");
        // Own topics matched by a wildcard are its own: only foreign ones would be a leak.
    }
    other.publish(&topic("dev-b", Channel::Reported), "secret").await.unwrap();
    home.message("dev-b", Channel::Reported).await;
    home.publish(&topic("dev-b", Channel::Desired), "secret", true).await;
    let leaked: Vec<_> = received_before_fence(home, &mut spy, "dev-a")
        .await
        .into_iter()
        .filter(|received| *received != topic("dev-a", Channel::Command))
        .collect();
    assert_eq!(leaked, Vec::<String>::new());
    assert!(spy.is_connected());
}

pub async fn last_wills_reach_own_topics_only(home: &mut Home) {
    let own = topic("dev-a", Channel::Presence);
    Device::connect_with_will(home, "dev-a", &own, "gone").await.unwrap().vanish().await;
    assert_eq!(home.message("dev-a", Channel::Presence).await, "gone");
    for forged in [
        topic("dev-b", Channel::Presence),
        topic("dev-a", Channel::Desired),
        TRUST_HEAD.to_owned(),
        "x".into(),
    ] {
        if let Ok(device) = Device::connect_with_will(home, "dev-a", &forged, "forged").await {
            device.vanish().await;
        }
    }
    // A will that is kept from its topic must not be retained there either.
    let mut b = Device::connect(home, "dev-b").await;
    let mut a = Device::connect(home, "dev-a").await;
    for (device, name) in [(&mut a, "dev-a"), (&mut b, "dev-b")] {
        for channel in [Channel::Desired, Channel::Command] {
            device.subscribe(&topic(name, channel)).await;
        }
        device.subscribe(TRUST_HEAD).await;
        assert_eq!(received_before_fence(home, device, name).await, Vec::<String>::new());
        device.publish(&topic(name, Channel::Reply), "fence").await.unwrap();
        home.message(name, Channel::Reply).await;
    }
    assert!(!home.payloads().contains(&"forged".to_owned()));
    // A goodbye cancels it.
    let polite = Device::connect_with_will(home, "dev-c", &topic("dev-c", Channel::Presence), "rude").await;
    polite.unwrap().say_goodbye().await;
    let mut again = Device::connect(home, "dev-c").await;
    again.publish(&topic("dev-c", Channel::Reply), "fence").await.unwrap();
    home.message("dev-c", Channel::Reply).await;
    assert!(!home.payloads().contains(&"rude".to_owned()));
}

pub async fn a_kicked_device_is_gone_and_may_return(home: &mut Home) {
    let mut device = Device::connect(home, "dev-1").await;
    let mut bystander = Device::connect(home, "dev-2").await;
    device.subscribe(&topic("dev-1", Channel::Command)).await;
    let started = Instant::now();
    home.broker.kick(&id("dev-1")).await.unwrap();
    device.ended().await;
    println!("kick took {:?}", started.elapsed());
    if home.is_embedded() {
        let gone = BrokerEvent::Disconnected {
            device: id("dev-1"),
            unexpected: true,
            reason: DisconnectReason::Kicked,
        };
        home.until("disconnect", |event| *event == gone).await;
    }
    let mut back = Device::connect(home, "dev-1").await;
    back.publish(&topic("dev-1", Channel::Reply), "back").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
    bystander.publish(&topic("dev-2", Channel::Reply), "here").await.unwrap();
    home.message("dev-2", Channel::Reply).await;
}

pub async fn a_revoked_device_is_gone_and_stays_out(home: &mut Home) {
    let stolen = home.pki.device("dev-1");
    home.fleet.issued.lock().insert(id("dev-1"), vec![stolen.serial.clone()]);
    let mut device = Device::connect_as(home, "dev-1", &stolen).await.unwrap();
    let mut bystander = Device::connect(home, "dev-2").await;
    let started = Instant::now();
    // The thief comes back as fast as it can, from the first loss on.
    let thief = async {
        let mut sessions = vec![];
        let mut refusals = 0;
        device.ended().await;
        while refusals < 20 {
            match Device::connect_as(home, "dev-1", &stolen).await {
                Ok(mut again) => {
                    let since = Instant::now();
                    again.ended().await;
                    sessions.push((since, Instant::now()));
                    refusals = 0;
                }
                Err(_) => refusals += 1,
            }
        }
        sessions
    };
    let revocation = async {
        home.broker.revoke(&id("dev-1")).await.unwrap();
        Instant::now()
    };
    let (sessions, revoked) = tokio::join!(thief, revocation);
    println!("revocation took {:?}, {} returns before", revoked - started, sessions.len());
    assert!((revoked - started).as_secs() < 5, "{:?}", revoked - started);
    for (since, until) in sessions {
        assert!(
            since < revoked && until < revoked + Duration::from_secs(1),
            "a session after the revocation"
        );
    }
    assert!(bystander.is_connected());
    bystander.publish(&topic("dev-2", Channel::Reply), "here").await.unwrap();
    home.message("dev-2", Channel::Reply).await;
    home.broker.allow(&id("dev-1")).await.unwrap();
    // Mosquitto loads the new list in its own time.
    let back = timeout(PATIENCE, async {
        loop {
            if let Ok(device) = Device::connect_as(home, "dev-1", &stolen).await {
                break device;
            }
        }
    });
    back.await.expect("an allowed device may return");
}

pub async fn a_silent_peer_blocks_nobody(home: &mut Home) {
    let mut silent = vec![];
    for _ in 0..20 {
        silent.push(TcpStream::connect(home.address).await.unwrap());
    }
    let half_open = Raw::open(home, &home.pki.device("dev-silent")).await;
    let started = Instant::now();
    let mut device = Device::connect(home, "dev-1").await;
    device.publish(&topic("dev-1", Channel::Reply), "hello").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    drop((silent, half_open));
}

pub async fn malformed_packets_hurt_only_their_sender(home: &mut Home) {
    let mut bystander = Device::connect(home, "dev-2").await;
    let before_connect: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: fleet.example\r\nUser-Agent: a browser that lost its way\r\nAccept: */*\r\n\r\n",
        &[0x10, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x00, 0x00],
        &[0xf0, 0x00],
        &[0x30, 0x03, 0x00, 0x01, b'x'],
        &[0x10, 0x02, 0xff, 0xff],
    ];
    for bytes in before_connect {
        let mut raw = Raw::open(home, &home.pki.device("dev-1")).await;
        let _ = raw.send(bytes).await;
        raw.closed(&format!("{bytes:02x?}")).await;
    }
    let after_connect: [&[u8]; 7] = [
        &[0x36, 0x05, 0x00, 0x01, b'x', 0x00, 0x01],       // QoS 3
        &[0x30, 0x04, 0x00, 0x09, b'x', b'y'],             // topic longer than the packet
        &[0x82, 0x02, 0x00, 0x01],                         // SUBSCRIBE without a filter
        &[0x80, 0x06, 0x00, 0x01, 0x00, 0x01, b'a', 0x00], // SUBSCRIBE with wrong flags
        &[0x30, 0x05, 0x00, 0x03, b'a', b'/', b'#'],       // wildcard in a topic
        &[0x30, 0x04, 0x00, 0x02, 0xc3, 0x28],             // not UTF-8
        &[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f],             // endless length
    ];
    for bytes in after_connect {
        let (mut raw, connack) = Raw::connect(home, "dev-1", 4).await;
        assert_eq!(connack, [0x20, 2, 0, 0]);
        let _ = raw.send(bytes).await;
        raw.closed(&format!("{bytes:02x?}")).await;
    }
    // A packet id of 0 and a CONNACK from a client: mqtt5 tolerates both, Mosquitto closes. Either may
    // be; nobody else may notice.
    for bytes in [&[0x32, 0x05, 0x00, 0x01, b'x', 0x00, 0x00][..], &[0x20, 0x02, 0x00, 0x00]] {
        let (mut raw, _) = Raw::connect(home, "dev-1", 4).await;
        raw.send(bytes).await.unwrap();
    }
    // CONNECT twice.
    let (mut raw, _) = Raw::connect(home, "dev-1", 4).await;
    let _ = raw.send(&crate::device::connect_packet("dev-1", 4)).await;
    raw.closed("a second CONNECT").await;
    bystander.publish(&topic("dev-2", Channel::Reply), "alive").await.unwrap();
    assert_eq!(home.message("dev-2", Channel::Reply).await, "alive");
    Device::connect(home, "dev-1").await;
}

pub async fn an_oversized_packet_ends_only_its_sender(home: &mut Home) {
    let mut bystander = Device::connect(home, "dev-2").await;
    let mut greedy = Device::connect(home, "dev-1").await;
    greedy.publish(&topic("dev-1", Channel::Reply), vec![b'x'; MAX_PACKET_BYTES + 1]).await.unwrap_err();
    bystander.publish(&topic("dev-2", Channel::Reply), "alive").await.unwrap();
    home.message("dev-2", Channel::Reply).await;
    let oversize = home
        .log
        .iter()
        .any(|event| matches!(event, BrokerEvent::Message { payload, .. } if payload.len() > 1_000));
    assert!(!oversize);
}

pub async fn a_second_connection_takes_over(home: &mut Home) {
    let presence = topic("dev-1", Channel::Presence);
    let mut first = Device::connect_with_will(home, "dev-1", &presence, "offline").await.unwrap();
    first.publish_retained(&presence, "online 1").await;
    let mut second = Device::connect_with_will(home, "dev-1", &presence, "offline").await.unwrap();
    second.publish_retained(&presence, "online 2").await;
    first.ended().await;
    home.until(
        "second presence",
        |event| matches!(event, BrokerEvent::Message { payload, .. } if payload == "online 2"),
    )
    .await;
    if home.is_embedded() {
        let takeover = BrokerEvent::Takeover { device: id("dev-1") };
        let at = home.log.iter().position(|event| *event == takeover).expect("a takeover event");
        assert!(matches!(home.log[at + 1], BrokerEvent::Connected { .. }));
        assert!(!home.payloads().contains(&"offline".to_owned()), "the displaced will does not apply");
        assert_eq!(home.broker.connected(), Some(1));
    }
    // The stored presence is the live connection's.
    let controller = home.pki.device("controller-2");
    if home.is_embedded() {
        let mut debugger = Device::connect_as(home, "controller-2", &controller).await.unwrap();
        assert!(debugger.subscribe("edgefleet/v1/#").await);
        assert_eq!(debugger.messages_until(&presence).await.pop().unwrap().1, "online 2");
    }
    second.publish(&topic("dev-1", Channel::Reply), "mine").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
    let left = home.log.iter().filter(|event| matches!(event, BrokerEvent::Disconnected { .. })).count();
    assert_eq!(left, 0, "{:?}", home.log);
}

pub async fn blocks_of_128_kib_pass_both_ways(home: &mut Home) {
    let block: Vec<u8> = (0..128 * 1024_u32).map(|n| n as u8).collect();
    let mut device = Device::connect(home, "dev-1").await;
    device.subscribe(&topic("dev-1", Channel::Blocks)).await;
    for _ in 0..8 {
        device.publish(&topic("dev-1", Channel::Telemetry), block.clone()).await.unwrap();
        assert_eq!(home.message("dev-1", Channel::Telemetry).await, block);
        home.publish(&topic("dev-1", Channel::Blocks), block.clone(), false).await;
        assert_eq!(device.messages_until(&topic("dev-1", Channel::Blocks)).await.pop().unwrap().1, block);
    }
}

pub async fn a_slow_consumer_costs_bounded_memory(home: &mut Home) {
    const BLOCKS: usize = 3_000;
    let blocks = topic("dev-slow", Channel::Blocks);
    let (mut slow, _) = Raw::connect(home, "dev-slow", 4).await;
    slow.send(&subscribe_packet(&blocks)).await.unwrap();
    let mut device = Device::connect(home, "dev-1").await;
    device.subscribe(&topic("dev-1", Channel::Command)).await;
    let pid = home.pid().unwrap_or_else(std::process::id);
    let block = bytes::Bytes::from(vec![7; 64 * 1024]);
    let before = resident(pid);
    for _ in 0..BLOCKS {
        // Copied: shared bytes would hide what the broker keeps.
        home.publish(&blocks, bytes::Bytes::copy_from_slice(&block), false).await;
    }
    // The fence went through the same broker after all blocks.
    assert_eq!(received_before_fence(home, &mut device, "dev-1").await, Vec::<String>::new());
    let grown = resident(pid).saturating_sub(before) / 1024;
    println!("{BLOCKS} blocks of 64 KiB to a client that does not read: {grown} KiB more");
    assert!(grown < 64 * 1024, "{grown} KiB");
    home.broker.kick(&id("dev-slow")).await.unwrap();
    slow.closed("not reading").await;
}

pub async fn eight_devices_publish_at_once(home: &mut Home) {
    const EACH: usize = 500;
    let mut devices = vec![];
    for n in 0..8 {
        let name = format!("dev-{n}");
        devices.push((Device::connect(home, &name).await, topic(&name, Channel::Telemetry)));
    }
    let started = Instant::now();
    let tasks: Vec<_> = devices
        .into_iter()
        .map(|(device, topic)| {
            tokio::spawn(async move {
                for n in 0..EACH {
                    let payload = format!("{n:0256}");
                    device.client.publish(&topic, rumqttc::QoS::AtLeastOnce, false, payload).await.unwrap();
                }
                device
            })
        })
        .collect();
    for _ in 0..8 * EACH {
        home.until("telemetry", |event| matches!(event, BrokerEvent::Message { .. })).await;
    }
    let took = started.elapsed();
    println!("{:.0} messages/s of 256 B, QoS 1, from 8 devices", (8 * EACH) as f64 / took.as_secs_f64());
    for task in tasks {
        assert!(task.await.unwrap().is_connected());
    }
}

pub async fn retained_messages_wait_for_their_reader_until_cleared(home: &mut Home) {
    let desired = topic("dev-1", Channel::Desired);
    let read = async |home: &Home| {
        let mut device = Device::connect(home, "dev-1").await;
        for filter in [&topic("dev-1", Channel::Command), &desired, TRUST_HEAD] {
            assert!(device.subscribe(filter).await);
        }
        let mut seen = received_before_fence(home, &mut device, "dev-1").await;
        seen.sort();
        device.say_goodbye().await;
        seen
    };
    for payload in ["old", "new"] {
        home.publish(&desired, payload, true).await;
        home.publish(TRUST_HEAD, payload, true).await;
    }
    assert_eq!(read(home).await, [desired.clone(), TRUST_HEAD.to_owned()]);
    home.publish(&desired, "", true).await;
    assert_eq!(read(home).await, [TRUST_HEAD]);
    // Mosquitto hands the controller's own messages to devices only.
    assert!(home.payloads().is_empty());
}
