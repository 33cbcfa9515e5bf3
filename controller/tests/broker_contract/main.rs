//! What the controller may rely on, whichever broker serves it: one table of rows, run against the
//! embedded broker and against a real Mosquitto. Run it on every upgrade of mqtt5, rumqttc or Mosquitto.

#![allow(unreachable_pub)] // a test binary has no outside

mod device;
mod embedded_only;
mod external_only;
mod home;
mod pki;
mod rows;
mod server_process;

use home::Home;

macro_rules! contract {
    ($($row:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $row() {
                crate::rows::$row(&mut crate::Home::embedded().await).await;
            })*
        }
        mod mosquitto {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $row() {
                if let Some(mut home) = crate::Home::mosquitto().await {
                    crate::rows::$row(&mut home).await;
                }
            })*
        }
    };
}

contract! {
    only_own_certificates_get_in
    a_client_id_cannot_be_borrowed
    a_revoked_serial_is_refused
    each_channel_works_in_its_one_direction_for_its_owner
    foreign_channels_are_closed_in_both_directions
    wildcards_and_shared_filters_deliver_nothing
    last_wills_reach_own_topics_only
    a_kicked_device_is_gone_and_may_return
    a_revoked_device_is_gone_and_stays_out
    a_silent_peer_blocks_nobody
    malformed_packets_hurt_only_their_sender
    an_oversized_packet_ends_only_its_sender
    a_second_connection_takes_over
    blocks_of_128_kib_pass_both_ways
    a_slow_consumer_costs_bounded_memory
    retained_messages_wait_for_their_reader_until_cleared
    eight_devices_publish_at_once
}
