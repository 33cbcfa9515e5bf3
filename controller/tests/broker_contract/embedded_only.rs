//! What only the embedded broker promises.

use crate::{
    device::{Device, Dial, PATIENCE, Raw, subscribe_packet},
    home::{Home, embedded_params, id, resident},
    pki::Pki,
    server_process::ServerProcess,
};
use edgefleet_controller::broker::{BrokerEvent, DisconnectReason, Message, Qos};
use edgefleet_shared::topics::{Channel, TRUST_HEAD};
use std::{sync::Arc, time::Instant};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

fn topic(device: &str, channel: Channel) -> String {
    channel.of(&id(device))
}

#[tokio::test]
async fn a_certificate_must_name_one_identity_twice() {
    let home = Home::embedded().await;
    for (common_name, dns) in [("dev-1", "dev-2"), ("Dev.1", "dev-1"), ("dev-1", "dev-1.example")] {
        let issued = home.pki.issue(common_name, dns, 3_600);
        assert!(Device::connect_as(&home, "dev-1", &issued).await.is_err(), "{common_name} {dns}");
    }
    Device::connect(&home, "dev-1").await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate() {
    let mut home = Home::embedded().await;
    let short = home.pki.issue("dev-1", "dev-1", 3);
    let mut device = Device::connect_as(&home, "dev-1", &short).await.unwrap();
    device.ended().await;
    let gone = BrokerEvent::Disconnected {
        device: id("dev-1"),
        unexpected: true,
        reason: DisconnectReason::CertificateExpired,
    };
    home.until("end of the session", |event| *event == gone).await;
    assert!(Device::connect_as(&home, "dev-1", &short).await.is_err());
}

#[tokio::test]
async fn events_tell_who_came_and_how_they_left() {
    let mut home = Home::embedded().await;
    let device = Device::connect(&home, "dev-1").await;
    let came = home.until("connect", |event| matches!(event, BrokerEvent::Connected { .. })).await;
    assert!(matches!(came, BrokerEvent::Connected { device, peer: Some(_) } if device == id("dev-1")));
    assert_eq!(home.broker.connected(), Some(1));
    device.say_goodbye().await;
    let left = |unexpected, reason| BrokerEvent::Disconnected { device: id("dev-1"), unexpected, reason };
    let goodbye = left(false, DisconnectReason::Client);
    home.until("goodbye", |event| *event == goodbye).await;
    assert_eq!(home.broker.connected(), Some(0));
    Device::connect(&home, "dev-1").await.vanish().await;
    let lost = left(true, DisconnectReason::Network);
    home.until("loss", |event| *event == lost).await;
}

#[tokio::test]
async fn swapped_tls_settings_serve_the_next_handshake_and_spare_live_sessions() {
    let (mut tls, next_ca) = (None, Pki::new());
    let mut home = Home::embedded_with(|params| tls = Some(Arc::clone(&params.tls))).await;
    let mut old = Device::connect(&home, "dev-1").await;
    let server = next_ca.issue("server", "localhost", 3_600);
    let scratch = tempfile::tempdir().unwrap();
    let next = embedded_params(&next_ca, &server, scratch.path()).tls.load_full();
    tls.unwrap().store(next);
    assert!(Device::connect_as(&home, "dev-2", &home.pki.device("dev-2")).await.is_err());
    let old_ca = std::mem::replace(&mut home.pki, next_ca);
    Device::connect(&home, "dev-3").await;
    assert!(Device::connect_as(&home, "dev-2", &old_ca.device("dev-2")).await.is_err());
    old.publish(&topic("dev-1", Channel::Reply), "alive").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
}

#[tokio::test]
async fn other_protocol_versions_are_refused() {
    let home = Home::embedded().await;
    for level in [3, 5, 6] {
        let (mut raw, connack) = Raw::connect(&home, "dev-1", level).await;
        assert!(connack.get(3).is_none_or(|code| *code != 0), "level {level}: {connack:?}");
        raw.closed(&format!("level {level}")).await;
    }
}

#[tokio::test]
async fn sessions_are_not_kept() {
    let home = Home::embedded().await;
    let issued = home.pki.device("dev-1");
    let dial = || Dial { client_id: "dev-1", tls: home.pki.client(Some(&issued)), will: None, clean: false };
    let mut device = Device::dial(&home, dial()).await.unwrap();
    device.subscribe(&topic("dev-1", Channel::Command)).await;
    device.vanish().await;
    home.publish(&topic("dev-1", Channel::Command), "while away", false).await;
    let mut again = Device::dial(&home, dial()).await.unwrap();
    assert!(!again.session_present);
    again.subscribe(&topic("dev-1", Channel::Command)).await;
    home.publish(&topic("dev-1", Channel::Command), "now", false).await;
    let messages = again.messages_until(&topic("dev-1", Channel::Command)).await;
    assert_eq!(messages.iter().map(|(_, payload)| payload.clone()).collect::<Vec<_>>(), ["now"]);
}

#[tokio::test]
async fn a_kick_leaves_no_subscription_behind() {
    let home = Home::embedded().await;
    let mut device = Device::connect(&home, "dev-1").await;
    device.subscribe(&topic("dev-1", Channel::Command)).await;
    home.broker.kick(&id("dev-1")).await.unwrap();
    home.publish(&topic("dev-1", Channel::Command), "while away", false).await;
    let mut again = Device::connect(&home, "dev-1").await;
    again.subscribe(&topic("dev-1", Channel::Label)).await;
    home.publish(&topic("dev-1", Channel::Command), "not subscribed", false).await;
    home.publish(&topic("dev-1", Channel::Label), "fence", false).await;
    assert_eq!(again.messages_until(&topic("dev-1", Channel::Label)).await.len(), 1);
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_kicked_in_time() {
    let mut home = Home::embedded().await;
    let (mut stuck, _) = Raw::connect(&home, "dev-1", 4).await;
    stuck.send(&subscribe_packet(&topic("dev-1", Channel::Blocks))).await.unwrap();
    // QoS 0 has no window: the broker writes until the socket takes no more.
    for _ in 0..400 {
        let message = Message {
            topic: topic("dev-1", Channel::Blocks),
            payload: vec![0; 128 * 1024].into(),
            retain: false,
            qos: Qos::AtMostOnce,
        };
        home.broker.publish(message).await.unwrap();
        tokio::task::yield_now().await;
    }
    let started = Instant::now();
    home.broker.revoke(&id("dev-1")).await.unwrap();
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    stuck.closed("not reading").await;
    home.until("disconnect", |event| {
        matches!(event, BrokerEvent::Disconnected { reason: DisconnectReason::Revoked, .. })
    })
    .await;
    assert!(Device::connect_as(&home, "dev-1", &home.pki.device("dev-1")).await.is_err());
    home.broker.allow(&id("dev-1")).await.unwrap();
    Device::connect(&home, "dev-1").await;
}

#[tokio::test]
async fn a_receiver_that_stops_reading_holds_devices_back_and_loses_nothing() {
    let mut home = Home::embedded_with(|params| params.event_capacity = 4).await;
    let device = Device::connect(&home, "dev-1").await;
    let sender = tokio::spawn(async move {
        for n in 0..200 {
            let payload = n.to_string();
            let publish = device.client.publish(
                topic("dev-1", Channel::Telemetry),
                rumqttc::QoS::AtLeastOnce,
                false,
                payload,
            );
            publish.await.unwrap();
        }
        device
    });
    // With nobody reading events, kick still works: it must not wait for a place among them.
    home.broker.kick(&id("dev-absent")).await.unwrap();
    for n in 0..200 {
        assert_eq!(home.message("dev-1", Channel::Telemetry).await, n.to_string());
    }
    let device = sender.await.unwrap();
    for _ in 0..8 {
        let publish =
            device.client.publish(topic("dev-1", Channel::Telemetry), rumqttc::QoS::AtLeastOnce, false, "x");
        publish.await.unwrap();
    }
    home.broker.kick(&id("dev-1")).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_the_rest_lives() {
    let mut home = Home::embedded_with(|params| params.max_connections = Some(2)).await;
    let mut one = Device::connect(&home, "dev-1").await;
    let two = Device::connect(&home, "dev-2").await;
    let mut refused = TcpStream::connect(home.address).await.unwrap();
    let read = timeout(PATIENCE, refused.read(&mut [0; 1])).await.expect("closed at once");
    assert!(matches!(read, Ok(0) | Err(_)));
    assert!(Device::connect_as(&home, "dev-3", &home.pki.device("dev-3")).await.is_err());
    one.publish(&topic("dev-1", Channel::Reply), "alive").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
    two.say_goodbye().await;
    home.until("a free place", |event| matches!(event, BrokerEvent::Disconnected { .. })).await;
    let third = timeout(PATIENCE, async {
        loop {
            if let Ok(device) = Device::connect_as(&home, "dev-3", &home.pki.device("dev-3")).await {
                break device;
            }
        }
    });
    third.await.expect("a place became free");
}

#[tokio::test]
async fn controllers_may_read_everything_and_publish_nothing() {
    let mut home = Home::embedded().await;
    let mut debugger = Device::connect(&home, "controller-debug").await;
    assert!(debugger.subscribe("#").await);
    assert!(!debugger.subscribe("$share/g/#").await);
    let mut device = Device::connect(&home, "dev-1").await;
    device.publish(&topic("dev-1", Channel::Reported), "state").await.unwrap();
    assert_eq!(debugger.messages_until(&topic("dev-1", Channel::Reported)).await.pop().unwrap().1, "state");
    device.subscribe(&topic("dev-1", Channel::Command)).await;
    debugger.publish(&topic("dev-1", Channel::Command), "forged").await.unwrap();
    debugger.publish(&topic("dev-1", Channel::Reported), "forged").await.unwrap();
    home.publish(&topic("dev-1", Channel::Command), "genuine", false).await;
    assert_eq!(device.messages_until(&topic("dev-1", Channel::Command)).await[0].1, "genuine");
    device.publish(&topic("dev-1", Channel::Reply), "fence").await.unwrap();
    home.message("dev-1", Channel::Reply).await;
    assert!(!home.payloads().contains(&"forged".to_owned()));
    assert_eq!(home.broker.connected(), Some(1), "a controller is not a device");
}

#[tokio::test]
async fn stopping_frees_port_and_files_and_the_next_start_replays_the_state() {
    let mut home = Home::embedded().await;
    let presence = topic("dev-1", Channel::Presence);
    let mut device = Device::connect_with_will(&home, "dev-1", &presence, "offline").await.unwrap();
    device.publish_retained(&topic("dev-1", Channel::Reported), "state").await;
    device.publish_retained(&topic("dev-1", Channel::Telemetry), "not stored").await;
    home.message("dev-1", Channel::Telemetry).await;
    let started = Instant::now();
    home.broker.stop().await;
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    device.ended().await;
    let (dir, address) = (home.dir.path().to_owned(), home.address);
    drop(home.broker);
    let mut next = Home::embedded_with(|params| {
        params.data_dir = dir.join("mqtt");
        params.listen = address;
    })
    .await;
    let replayed = BrokerEvent::Message {
        device: id("dev-1"),
        channel: Channel::Reported,
        payload: "state".into(),
        retained: true,
    };
    next.until("stored state", |event| *event == replayed).await;
    Device::connect(&next, "dev-2").await;
    next.until("connect", |event| matches!(event, BrokerEvent::Connected { .. })).await;
    assert_eq!(next.payloads(), ["state"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_survive_kill_9() {
    let mut home = Home::embedded().await; // only for its CA
    let server = home.pki.issue("server", "localhost", 3_600);
    let dir = tempfile::tempdir().unwrap();
    let mut process = ServerProcess::start(&home.pki, &server, dir.path());
    home.address = process.address;
    let mut device = Device::connect(&home, "dev-0").await;
    for n in 0..50 {
        process.retain(&topic(&format!("dev-{n}"), Channel::Desired), &format!("generation {n}"));
    }
    process.retain(TRUST_HEAD, "version 7");
    device.publish_retained(&topic("dev-0", Channel::Reported), "mine").await;
    process.kill();
    let process = ServerProcess::start(&home.pki, &server, dir.path());
    home.address = process.address;
    for n in 0..50 {
        let name = format!("dev-{n}");
        let mut device = Device::connect(&home, &name).await;
        device.subscribe(&topic(&name, Channel::Desired)).await;
        let stored = device.messages_until(&topic(&name, Channel::Desired)).await;
        assert_eq!(stored[0].1, format!("generation {n}"));
        device.subscribe(TRUST_HEAD).await;
        assert_eq!(device.messages_until(TRUST_HEAD).await[0].1, "version 7");
    }
    let mut debugger = Device::connect(&home, "controller-debug").await;
    debugger.subscribe(&Channel::Reported.of_all()).await;
    assert_eq!(debugger.messages_until(&topic("dev-0", Channel::Reported)).await[0].1, "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connected_device_costs_little_memory() {
    const DEVICES: u64 = 300;
    let mut home = Home::embedded().await; // only for its CA
    let server = home.pki.issue("server", "localhost", 3_600);
    let dir = tempfile::tempdir().unwrap();
    let process = ServerProcess::start(&home.pki, &server, dir.path());
    home.address = process.address;
    let mut devices = vec![];
    let mut before = 0;
    for n in 0..DEVICES + 20 {
        if n == 20 {
            before = resident(process.pid()); // the first ones pay for what all share
        }
        let (mut raw, _) = Raw::connect(&home, &format!("dev-{n}"), 4).await;
        for channel in [Channel::Desired, Channel::Command] {
            raw.send(&subscribe_packet(&topic(&format!("dev-{n}"), channel))).await.unwrap();
            let mut suback = [0; 5];
            timeout(PATIENCE, raw.0.read_exact(&mut suback)).await.unwrap().unwrap();
            assert_eq!(suback[4], 1);
        }
        devices.push(raw);
    }
    let each = (resident(process.pid()) - before) / DEVICES / 1024;
    println!("{each} KiB per connected device");
    assert!(each < 120, "{each} KiB");
    assert_eq!(devices.len() as u64, DEVICES + 20);
}
