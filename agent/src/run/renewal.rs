//! Renews the device certificate in time and gives the new one to everything that connects.

use super::adapters::CurrentHttps;
use crate::{
    identity::{
        Identity, TrustedClock,
        renew::{RETRY, due, renew},
    },
    link::LinkHandle,
    update::HttpsSource,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tracing::{error, info, warn};

/// The clock may jump: nothing is slept through for longer than this.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

pub(super) struct Renewal {
    pub(super) identity: Identity,
    pub(super) data: PathBuf,
    pub(super) clock: Arc<TrustedClock>,
    pub(super) link: LinkHandle,
    pub(super) https: Arc<CurrentHttps>,
}

impl Renewal {
    /// Runs for ever.
    pub(super) async fn run(mut self) {
        let spread: f64 = rand::random();
        loop {
            let (start, end) = match self.identity.validity() {
                Ok(validity) => validity,
                Err(e) => {
                    error!(reason = %e, "the device certificate cannot be read; enrol again");
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
            };
            let wait = due(start, end, spread).since(self.clock.now());
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
                continue;
            }
            match renew(&self.identity, &self.data, &self.clock).await {
                Ok(renewed) => {
                    self.identity = renewed;
                    match self.identity.tls(&self.clock) {
                        Ok(tls) => {
                            let url = &self.identity.controller.url;
                            self.https.0.store(Arc::new(HttpsSource::new((*tls).clone(), url)));
                            self.link.reconnect(tls);
                            info!(until = ?self.identity.validity().ok().map(|v| v.1), "certificate renewed");
                        }
                        Err(e) => error!(reason = %e, "the renewed certificate cannot be used"),
                    }
                    // Whatever came, never renew in a tight loop.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                Err(e) => {
                    let reason = format!("{:#}", anyhow::Error::new(e));
                    warn!(reason, until = %end, "the certificate was not renewed; trying again");
                    let random: f64 = rand::random();
                    tokio::time::sleep(RETRY.mul_f64(0.5 + random)).await;
                }
            }
        }
    }
}
