//! Sends the metrics to an OpenTelemetry collector, at an interval.

use super::otlp::request;
use crate::{
    alerts::{
        outward,
        settings::{file, optional},
    },
    api::metrics::{MetricKind, Metrics, MetricsText},
    clock::Clock,
    registry::toml_reader::Table,
};
use reqwest::{
    Client, Url, header,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1);

/// `[otlp]` of the server's settings.
#[derive(Clone)]
pub struct OtlpSettings {
    /// Where `/v1/metrics` is.
    pub endpoint: Url,
    pub interval: Duration,
    /// Often a token: never shown.
    pub headers: HeaderMap,
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for OtlpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpSettings")
            .field("origin", &self.endpoint.origin().ascii_serialization())
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl OtlpSettings {
    /// Reads `[otlp]`, noting every mistake in its reader.
    pub(crate) fn read(table: Table<'_>) -> Option<Self> {
        let endpoint = table.need_parsed::<Url>("endpoint").and_then(|url| {
            let good = matches!(url.scheme(), "https" | "http") && url.host_str().is_some();
            if !good {
                table.wrong("endpoint", "is neither https://... nor http://...");
            }
            good.then_some(url)
        });
        let interval = optional::<humantime::Duration>(&table, "interval").and_then(|found| {
            let every = found.map_or(EVERY, Duration::from);
            if every < SHORTEST {
                table.wrong("interval", format!("is less than {} s", SHORTEST.as_secs()));
                return None;
            }
            Some(every)
        });
        let headers = file(&table, "headers_file", false).and_then(|found| {
            let parsed = headers(&found.0);
            if parsed.is_none() {
                table.wrong("headers_file", "has a line that is not `Name: value`");
            }
            parsed
        });
        let ca = file(&table, "ca_file", false);
        table.finish();
        let ca = Some(ca?.0).filter(|pem| !pem.is_empty());
        Some(Self { endpoint: endpoint?, interval: interval?, headers: headers?, ca })
    }

    fn url(&self) -> Url {
        let mut url = self.endpoint.clone();
        let path = format!("{}/v1/metrics", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }
}

fn headers(bytes: &[u8]) -> Option<HeaderMap> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut all = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let mut value: HeaderValue = value.trim().parse().ok()?;
        value.set_sensitive(true);
        all.insert(name.trim().parse::<HeaderName>().ok()?, value);
    }
    Some(all)
}

/// The task and its own counters.
#[derive(Clone)]
pub struct OtlpPush(Arc<Inner>);

struct Inner {
    settings: OtlpSettings,
    client: Client,
    sent: AtomicU64,
    failed: AtomicU64,
}

impl OtlpPush {
    /// # Errors
    /// What is wrong with the settings.
    pub fn new(settings: OtlpSettings) -> Result<Self, reqwest::Error> {
        let client = outward::client(&settings.endpoint, settings.ca.as_deref())?
            .timeout(LIMIT)
            .default_headers(settings.headers.clone())
            .build()?;
        let (sent, failed) = (AtomicU64::default(), AtomicU64::default());
        Ok(Self(Arc::new(Inner { settings, client, sent, failed })))
    }

    /// Sends at every interval until `stop` is cancelled. What is lost is made good by the next one.
    pub async fn run(self, metrics: Arc<Metrics>, instance: String, clock: Clock, stop: CancellationToken) {
        let since = clock();
        let mut ticks = tokio::time::interval(self.0.settings.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_well = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let body = request(&metrics.families(), &instance, since, clock()).to_string();
            let sent = tokio::select! {
                sent = self.send(body) => sent,
                () = stop.cancelled() => return,
            };
            match sent {
                Ok(()) => {
                    self.0.sent.fetch_add(1, Relaxed);
                    was_well = true;
                }
                Err(error) => {
                    self.0.failed.fetch_add(1, Relaxed);
                    // Once for each outage; the counter has the rest.
                    if was_well {
                        tracing::warn!(error, "otlp.send");
                    }
                    was_well = false;
                }
            }
        }
    }

    async fn send(&self, body: String) -> Result<(), String> {
        let request = self.0.client.post(self.0.settings.url());
        let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        let answer = request.send().await.map_err(|error| format!("{:#}", error.without_url()))?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
    }

    pub fn metrics(&self, text: &mut MetricsText) {
        let name = "edgefleet_otlp_pushes_total";
        text.family(name, MetricKind::Counter, "Metrics sent to an OpenTelemetry collector.");
        for (outcome, count) in [("ok", &self.0.sent), ("failed", &self.0.failed)] {
            text.sample(name, &[("outcome", outcome)], count.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_and_never_shown() {
        let all = headers(b"Authorization: Bearer hunter2\n\nX-Scope: a: b\n").unwrap();
        assert_eq!((all.len(), all["x-scope"].to_str().unwrap()), (2, "a: b"));
        assert!(headers(b"no colon").is_none() && headers(b"a b: c").is_none());
        let settings = OtlpSettings {
            endpoint: "http://c:4318/otlp/".parse().unwrap(),
            interval: EVERY,
            headers: all,
            ca: None,
        };
        assert_eq!(settings.url().as_str(), "http://c:4318/otlp/v1/metrics");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
