//! A plan's preview as tables.

use super::words::{Figure, WIDTH, field, fold, list, long, percent};
use crate::{
    cli::table,
    evidence::Gate,
    rollout::Mode,
    rollouts::preview::{GatePreview, LimitedBy, Preview, StagePreview},
};
use indicatif::HumanBytes;

/// Strata that are listed; the rest is counted.
const STRATA: usize = 12;

/// What would happen, the most important first.
pub(super) fn text(preview: &Preview) -> String {
    let mut parts = Vec::new();
    if !preview.mistakes.is_empty() {
        let mistakes: Vec<_> =
            preview.mistakes.iter().map(|m| format!("`{}` {}", m.path, m.problem)).collect();
        parts.push(format!("THE PLAN CANNOT BE USED\n{}", list(mistakes.iter().map(String::as_str))));
    }
    parts.push(head(preview));
    parts.push(table::of(
        &[
            "STAGE",
            "MODE",
            "DEVICES",
            "REACHED",
            "DELIVERY",
            "LIMITED BY",
            "SOAK",
            "EXPECTED",
            "AT MOST",
            "BYTES",
        ],
        preview.stages.iter().map(stage),
    ));
    let gates = gates(preview);
    if !gates.is_empty() {
        parts.push(gates);
    }
    parts.push(strata(preview));
    for (title, sentences) in [("WARNINGS", &preview.warnings), ("ASSUMED", &preview.assumed)] {
        if !sentences.is_empty() {
            parts.push(format!("{title}\n{}", list(sentences.iter().map(String::as_str))));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn head(preview: &Preview) -> String {
    let mut devices = format!(
        "{}, of them {} canaries and {} controls",
        preview.devices, preview.canaries, preview.controls
    );
    if let Some(online) = preview.online {
        devices += &format!("; {online} are online now");
    }
    [
        field("bundle", &format!("{} into slot {}", preview.bundle, preview.slot)),
        field("devices", &devices),
        field(
            "takes",
            &format!(
                "about {} for a harmless bundle, at most {}",
                long(preview.expected),
                long(preview.longest)
            ),
        ),
        field(
            "bytes",
            &format!(
                "{}, {} for each device",
                HumanBytes(preview.bytes),
                HumanBytes(preview.bytes_per_device)
            ),
        ),
        field(
            "false stop",
            &format!(
                "at most {} of harmless bundles, however often anyone looks",
                percent(preview.false_alarms)
            ),
        ),
    ]
    .join("\n")
}

fn stage(stage: &StagePreview) -> Vec<String> {
    let mode = match stage.mode {
        Mode::Shadow => "shadow",
        Mode::Active => "active",
    };
    let limited = match stage.limited_by {
        LimitedBy::Nothing => "-",
        LimitedBy::Rate => "rate",
        LimitedBy::Concurrency => "concurrency",
        LimitedBy::Groups => "redundancy groups",
        LimitedBy::Bandwidth => "bandwidth",
        LimitedBy::BytesPerDay => "bytes per day",
        LimitedBy::Spread => "spread",
    };
    let name = if stage.approval { format!("{} (after approval)", stage.name) } else { stage.name.clone() };
    vec![
        name,
        mode.to_owned(),
        stage.devices.to_string(),
        stage.reached.to_string(),
        long(stage.delivery),
        limited.to_owned(),
        long(stage.soak),
        long(stage.expected_soak),
        long(stage.max_soak),
        HumanBytes(stage.bytes).to_string(),
    ]
}

/// What has to be safe before each stage passes, and what that gate can find there.
fn gates(preview: &Preview) -> String {
    let mut parts = Vec::new();
    for stage in preview.stages.iter().filter(|stage| !stage.gates.is_empty()) {
        let lines: Vec<_> = stage.gates.iter().map(gate).collect();
        parts.push(format!("GATES OF STAGE `{}`\n{}", stage.name, lines.join("\n")));
    }
    parts.join("\n\n")
}

fn gate(gate: &GatePreview) -> String {
    let mut text = gate.sentence.clone();
    if gate.gate != Gate::Hard && !gate.detection.is_empty() {
        // The sentence says the same at length; here every gate's figures stand below each other.
        let found: Vec<_> =
            gate.detection.iter().map(|(size, share)| format!("{size}x in {:.0}%", 100.0 * share)).collect();
        let reliably = match gate.smallest_found {
            Some(size) => format!("finds {size}x"),
            None => "finds nothing reliably".to_owned(),
        };
        let safe = match gate.hours_to_safe {
            Some(hours) => format!("safe after {} h", Figure(hours)),
            None => "not called safe within the soak".to_owned(),
        };
        text = format!("{reliably} ({} of runs); {safe}", found.join(", "));
    }
    format!("  {:<10} {}", gate.gate.name(), fold(&text, 13, WIDTH))
}

fn strata(preview: &Preview) -> String {
    if preview.strata.len() < 2 {
        return String::new();
    }
    let rows = preview.strata.iter().take(STRATA).map(|stratum| {
        vec![
            stratum.name.clone(),
            stratum.devices.to_string(),
            stratum.canaries.to_string(),
            stratum.controls.to_string(),
        ]
    });
    let mut text = table::of(
        &[&format!("STRATUM ({})", preview.strata_by.join("|")), "DEVICES", "CANARIES", "CONTROLS"],
        rows,
    );
    if preview.strata.len() > STRATA {
        text += &format!("\n(and {} more)", preview.strata.len() - STRATA);
    }
    text
}
