//! One try over HTTP: a signed POST, no redirects, little of the answer read.

use super::{
    channel::Webhook,
    delivery::{Delivery, Outcome},
    outward,
    sender::{Tried, one_line},
    signature::{KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign},
};
use edgefleet_shared::time::Timestamp;
use reqwest::{Client, Response, StatusCode, header};
use serde::Serialize;
use std::time::{Duration, Instant};

/// For the whole try.
const LIMIT: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Of an answer that is a refusal: a sentence for the list of deliveries.
const MAX_ANSWER: usize = 512;

pub(super) struct HttpSender {
    webhook: Webhook,
    client: Client,
}

/// What a receiver gets. The same bytes at every try.
#[derive(Serialize)]
struct Body<'a> {
    version: u8,
    idempotency_key: String,
    channel: &'a str,
    #[serde(flatten)]
    event: &'a super::event::AlertEvent,
}

impl HttpSender {
    pub(super) fn new(webhook: Webhook) -> Result<Self, String> {
        let client = outward::client(&webhook.url, webhook.ca.as_deref())
            .and_then(|client| client.connect_timeout(CONNECT_LIMIT).timeout(LIMIT).build())
            .map_err(|error| chain(&error.without_url()))?;
        Ok(Self { webhook, client })
    }

    pub(super) async fn send(&self, delivery: &Delivery, now: Timestamp) -> Tried {
        let key = delivery.key();
        let body = Body {
            version: 1,
            idempotency_key: key.clone(),
            channel: &delivery.channel,
            event: &delivery.event,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default(); // plain data: cannot fail
        let begun = Instant::now();
        let sent = self
            .client
            .post(self.webhook.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(TIMESTAMP_HEADER, now.as_secs())
            .header(SIGNATURE_HEADER, sign(self.webhook.secret.reveal(), now, &body))
            .header(KEY_HEADER, key)
            .body(body)
            .send()
            .await;
        let latency_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let failed = |status, error| Outcome { ok: false, status, latency_ms, error: Some(error) };
        match sent {
            Ok(answer) if answer.status().is_success() => {
                let status = Some(answer.status().as_u16());
                Tried::of(Outcome { ok: true, status, latency_ms, error: None })
            }
            Ok(answer) => {
                let status = answer.status();
                let asked = retry_after(&answer);
                let said = beginning(answer).await;
                let error = if said.is_empty() {
                    format!("it answered {status}")
                } else {
                    format!("it answered {status}: {said}")
                };
                let outcome = failed(Some(status.as_u16()), error);
                // Only this one says that nobody will ever be there again.
                Tried { outcome, asked, hopeless: status == StatusCode::GONE }
            }
            Err(error) => Tried::of(failed(None, chain(&error.without_url()))),
        }
    }
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let text = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

async fn beginning(mut answer: Response) -> String {
    let mut read = Vec::new();
    while read.len() < MAX_ANSWER {
        match answer.chunk().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk[..chunk.len().min(MAX_ANSWER - read.len())]),
            Ok(None) | Err(_) => break,
        }
    }
    one_line(&String::from_utf8_lossy(&read))
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    one_line(&all.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
