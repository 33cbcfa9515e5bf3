//! Pure: what channels of a bundle without a baseline are compared by.
//!
//! Devices count numbers that lie between 0 and 1 by their nature (confidence, entropy, luma of decoded pictures,
//! saturation, zeros) in twenty bins of fixed edges, and categories by their names; of all other numbers they say mean
//! and spread, and a shift of the mean in units of the spread is what can be seen. There is no held-out data to
//! compare with, so the reference is the past of the same device or cohort, and the cohort now.

use edgefleet_shared::{
    bundle::{Baseline, BaselineChannel, ChannelKind, baseline::BASELINE_SCHEMA},
    telemetry::{Channel, Moments, ProfileContent},
};
use std::{collections::BTreeMap, time::Duration};

/// The past says little before it holds every hour of a day.
pub(super) const LEARNING: Duration = Duration::from_secs(86_400);
/// Bins of numbers between 0 and 1 on devices.
const UNIT_BINS: u32 = 20;
const OF_PICTURES: [&str; 6] = ["luma", "contrast", "sharpness", "saturation", "width", "height"];

fn edges(channel: &Channel) -> Vec<f64> {
    let edges = (0..=UNIT_BINS).map(|n| f64::from(n) / f64::from(UNIT_BINS));
    if channel.bins.len() == UNIT_BINS as usize + 2 { edges.collect() } else { Vec::new() }
}

/// By the id, as devices build it.
fn kind(channel: &Channel) -> ChannelKind {
    let id = channel.id.as_str();
    let last = id.rsplit('/').next().unwrap_or(id);
    match id {
        "confidence" | "entropy" => ChannelKind::Score,
        _ if id.starts_with("output/") => ChannelKind::Output,
        _ if !channel.categories.is_empty() => ChannelKind::Category,
        _ if id.matches('/').count() >= 2 && OF_PICTURES.contains(&last) => ChannelKind::Image,
        _ => ChannelKind::Input,
    }
}

/// A baseline of no rows: it knows the channels and their edges, and nothing can be compared with it.
pub(super) fn skeleton(content: &ProfileContent) -> Baseline {
    let channel = |channel: &Channel| BaselineChannel {
        id: channel.id.clone(),
        kind: kind(channel),
        n: 0,
        missing: 0,
        edges: edges(channel),
        bins: Vec::new(),
        moments: Moments::default(),
        categories: BTreeMap::new(),
    };
    Baseline {
        schema: BASELINE_SCHEMA,
        rows: 0,
        dataset: String::new(),
        channels: content.channels.iter().map(channel).collect(),
        classes: BTreeMap::new(),
        quality: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_known_by_their_ids_and_bins() {
        let channel = |id: &str, bins: usize, category: bool| {
            let mut channel = Channel::new(id.parse().unwrap());
            channel.bins = vec![0; bins];
            if category {
                channel.categories.insert("red".into(), 0);
            }
            channel
        };
        let content = ProfileContent {
            channels: vec![
                channel("confidence", 22, false),
                channel("input/colour", 0, true),
                channel("input/image/sharpness", 0, false),
                channel("input/width", 0, false),
                channel("output/y", 0, false),
            ],
            ..ProfileContent::default()
        };
        let found = skeleton(&content);
        let kinds: Vec<_> = found.channels.iter().map(|one| (one.kind, one.edges.len())).collect();
        assert_eq!(
            kinds,
            [
                (ChannelKind::Score, 21),
                (ChannelKind::Category, 0),
                (ChannelKind::Image, 0),
                (ChannelKind::Input, 0),
                (ChannelKind::Output, 0),
            ]
        );
        assert_eq!(found.channels[0].edges[1], 0.05);
    }
}
