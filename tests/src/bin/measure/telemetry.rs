//! What simulated devices say: windows of five minutes and profiles of an hour, as agents would.

use edgefleet_shared::{
    digest::BundleDigest,
    ids::{AttemptId, BootId, BundleName, DeviceId},
    reported::ClockQuality,
    telemetry::{
        Channel, Counts, LabelCounts, Latency, Profile, ProfileContent, Quality, Record, RecordBody, Role,
        Sketch, TelemetryBatch, Window, batch::TELEMETRY_SCHEMA,
    },
    time::Timestamp,
};
use std::time::Duration;

/// Windows of an hour; the last one goes with the hour's profile and labels.
pub(super) const WINDOWS_PER_HOUR: u64 = 12;
const REQUESTS: u64 = 300;
const CHANNELS: usize = 32;
const BINS: usize = 22;

/// A device's next messages.
pub(super) struct Speaker {
    device: DeviceId,
    boot: BootId,
    bundle: BundleName,
    begin: Timestamp,
    seq: u64,
    windows: u64,
    noise: u64,
}

impl Speaker {
    pub(super) fn new(device: DeviceId, number: u64, bundle: BundleName, begin: Timestamp) -> Self {
        let mut boot = [0; 16];
        boot[..8].copy_from_slice(&number.to_be_bytes());
        Self { device, boot: BootId::from_random(boot), bundle, begin, seq: 0, windows: 0, noise: number + 1 }
    }

    /// The number of the last record it said.
    pub(super) fn said(&self) -> u64 {
        self.seq
    }

    /// One message of `windows` windows, with whatever else is due by then.
    pub(super) fn next(&mut self, windows: u64) -> anyhow::Result<Vec<u8>> {
        let mut bodies = Vec::new();
        for _ in 0..windows {
            let start = self.begin + Duration::from_secs(300) * u32::try_from(self.windows)?;
            bodies.push(RecordBody::Window(Box::new(self.window(start)?)));
            self.windows += 1;
            if self.windows.is_multiple_of(WINDOWS_PER_HOUR) {
                let hour = start - Duration::from_secs(55 * 60);
                bodies.push(RecordBody::Profile(Box::new(self.profile(hour)?)));
                bodies.push(RecordBody::Labels(self.labels(start)?));
            }
        }
        let records = bodies.into_iter().map(|body| {
            self.seq += 1;
            Record { boot: self.boot, seq: self.seq, body }
        });
        let records = records.collect();
        Ok(TelemetryBatch { schema: TELEMETRY_SCHEMA, device: self.device.clone(), records }.to_bytes()?)
    }

    /// Between 0 and 1, the same in every run.
    fn noise(&mut self) -> f64 {
        self.noise =
            self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.noise >> 40) as f64 / (1u64 << 24) as f64
    }

    fn attempt() -> anyhow::Result<AttemptId> {
        Ok(AttemptId { rollout: "r-1".parse()?, number: 1 })
    }

    fn window(&mut self, start: Timestamp) -> anyhow::Result<Window> {
        let mut latency = Latency::default();
        for _ in 0..REQUESTS {
            let infer = 800.0 + 400.0 * self.noise();
            let queue = 20.0 * self.noise();
            let record = |sketch: &mut Sketch, us: f64| sketch.record_us(us as u64);
            record(&mut latency.infer, infer);
            record(&mut latency.queue, queue);
            record(&mut latency.total, infer + queue);
        }
        let counts = Counts { requests: REQUESTS, rows: REQUESTS, ok: REQUESTS, ..Counts::default() };
        Ok(Window {
            slot: "digits".parse()?,
            bundle: self.bundle.clone(),
            digest: BundleDigest::of(b"measured"),
            role: Role::Primary,
            attempt: Self::attempt()?,
            mono_start_ms: self.windows * 300_000,
            mono_end_ms: (self.windows + 1) * 300_000,
            wall_start: start,
            wall_end: start + Duration::from_secs(300),
            clock: ClockQuality::Plausible,
            counts,
            latency,
            classes: (0..10).map(|class| (class.to_string(), REQUESTS / 10)).collect(),
            first_bad_ms: None,
            exceed: vec![],
            agreement: None,
            device: None,
        })
    }

    fn profile(&mut self, start: Timestamp) -> anyhow::Result<Profile> {
        let rows = REQUESTS * WINDOWS_PER_HOUR;
        let mut channels = Vec::with_capacity(CHANNELS);
        for at in 0..CHANNELS {
            let mut channel = Channel::new(format!("input/features/{at:02}").parse()?);
            channel.bins = vec![0; BINS];
            for _ in 0..rows {
                let x = (self.noise() + self.noise()) / 2.0;
                channel.moments.take(x);
                channel.bins[(x * BINS as f64) as usize] += 1;
                channel.n += 1;
            }
            channels.push(channel);
        }
        let n = rows as f64;
        let quality =
            Quality { n: rows, expected_correct: 0.9 * n, variance: 0.09 * n, ..Quality::default() };
        Ok(Profile {
            slot: "digits".parse()?,
            bundle: self.bundle.clone(),
            digest: BundleDigest::of(b"measured"),
            role: Role::Primary,
            attempt: Self::attempt()?,
            mono_start_ms: 0,
            mono_end_ms: 3_600_000,
            wall_start: start,
            wall_end: start + Duration::from_secs(3_600),
            clock: ClockQuality::Plausible,
            content: ProfileContent { rows, channels, quality: Some(quality), ..ProfileContent::default() },
        })
    }

    fn labels(&self, start: Timestamp) -> anyhow::Result<LabelCounts> {
        Ok(LabelCounts {
            slot: "digits".parse()?,
            bundle: self.bundle.clone(),
            digest: BundleDigest::of(b"measured"),
            attempt: Self::attempt()?,
            bucket: start,
            source: "local".into(),
            matched: 50,
            correct: 45,
            confusion: vec![("1".into(), "7".into(), 5)],
            unmatched: Default::default(),
            versus: None,
        })
    }
}
