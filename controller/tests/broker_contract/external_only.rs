//! What only the client of an external broker promises: living with the broker's absence.

use crate::{
    device::Device,
    home::{Home, id, signal},
};
use edgefleet_controller::broker::{BrokerError, BrokerEvent, Message, Qos, Upstream};
use edgefleet_shared::topics::Channel;
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_comes_back_subscribed_after_the_broker_died() {
    let Some(mut home) = Home::mosquitto().await else { return };
    home.log.clear(); // the link may have been tried before the broker listened
    home.mosquitto.as_mut().unwrap().kill();
    home.until("loss of the broker", |event| matches!(event, BrokerEvent::Upstream(Upstream::Down { .. })))
        .await;
    let message = Message {
        topic: Channel::Command.of(&id("dev-1")),
        payload: "x".into(),
        retain: false,
        qos: Qos::AtLeastOnce,
    };
    let started = Instant::now();
    assert!(matches!(home.broker.publish(message).await, Err(BrokerError::Offline)));
    assert!(started.elapsed() < Duration::from_secs(1), "an offline publish must not wait");
    home.mosquitto.as_mut().unwrap().start_again();
    home.until("the broker again", |event| *event == BrokerEvent::Upstream(Upstream::Up)).await;
    let mut device = Device::connect(&home, "dev-1").await;
    device.subscribe(&Channel::Command.of(&id("dev-1"))).await;
    device.publish(&Channel::Telemetry.of(&id("dev-1")), "after").await.unwrap();
    assert_eq!(home.message("dev-1", Channel::Telemetry).await, "after");
    home.publish(&Channel::Command.of(&id("dev-1")), "after", false).await;
    device.messages_until(&Channel::Command.of(&id("dev-1"))).await;
    let downs =
        home.log.iter().filter(|event| matches!(event, BrokerEvent::Upstream(Upstream::Down { .. }))).count();
    assert_eq!(downs, 1, "one outage is told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_state_is_replayed_as_old_after_the_link_is_up() {
    let Some(mut home) = Home::mosquitto().await else { return };
    let mut device = Device::connect(&home, "dev-1").await;
    device.publish_retained(&Channel::Reported.of(&id("dev-1")), "state").await;
    home.message("dev-1", Channel::Reported).await;
    // An orderly end writes the database.
    let mosquitto = home.mosquitto.as_mut().unwrap();
    signal("TERM", mosquitto.pid());
    home.until("loss of the broker", |event| matches!(event, BrokerEvent::Upstream(Upstream::Down { .. })))
        .await;
    let mosquitto = home.mosquitto.as_mut().unwrap();
    mosquitto.kill();
    mosquitto.start_again();
    let replayed = BrokerEvent::Message {
        device: id("dev-1"),
        channel: Channel::Reported,
        payload: "state".into(),
        retained: true,
    };
    home.until("stored state", |event| *event == replayed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_ends_the_link() {
    let Some(home) = Home::mosquitto().await else { return };
    home.broker.stop().await;
    let message = Message {
        topic: "edgefleet/v1/trust/head".into(),
        payload: "x".into(),
        retain: false,
        qos: Qos::AtMostOnce,
    };
    assert!(matches!(home.broker.publish(message).await, Err(BrokerError::Offline)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_outlasts_a_broker_that_loads_the_list_late() {
    let Some(home) = Home::mosquitto().await else { return };
    let stolen = home.pki.device("dev-1");
    home.fleet.issued.lock().insert(id("dev-1"), vec![stolen.serial.clone()]);
    home.fleet.loads_late.store(true, Ordering::SeqCst);
    let mut first = Device::connect_as(&home, "dev-1", &stolen).await.unwrap();
    let thief = async {
        first.ended().await;
        // Back before the list counts; only now is it loaded, which does not end a session.
        let mut second = Device::connect_as(&home, "dev-1", &stolen).await.expect("the list is not loaded");
        signal("HUP", home.mosquitto.as_ref().unwrap().pid());
        second.ended().await;
    };
    let device = id("dev-1");
    let (revoked, ()) = tokio::join!(home.broker.revoke(&device), thief);
    revoked.unwrap();
    assert!(Device::connect_as(&home, "dev-1", &stolen).await.is_err());
}
