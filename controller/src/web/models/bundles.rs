//! The bundles of a model: who made and signed them, from what, and whether they passed their checks.

use super::super::{
    Web,
    answer::PageError,
    words::{ago, badge, bytes, count, digest},
};
use crate::{
    fleet::FleetError,
    registry::record::{BundleRecord, ModelSummary},
};
use edgefleet_shared::{bundle::Manifest, ids::BundleName};
use maud::{Markup, html};

/// Bundles shown, the newest; each costs a read of its manifest.
const MOST: usize = 20;

pub(super) async fn table(web: &Web, model: &ModelSummary) -> Result<Markup, PageError> {
    let serving = super::serving(web);
    let mut rows = Vec::new();
    for line in model.bundles.iter().rev().take(MOST) {
        let name = BundleName { model: model.name.clone(), counter: line.counter };
        let registry = &web.operations.registry;
        let Some(record) = registry.find(&name).await.map_err(FleetError::from)? else { continue };
        // A manifest that cannot be read must not hide the others.
        let manifest = registry.manifest(&record).await.ok().and_then(|bytes| Manifest::parse(&bytes).ok());
        let devices = serving.get(&name).copied().unwrap_or_default();
        rows.push(row(web, &record, manifest.as_ref(), devices));
    }
    Ok(html! {
        div .wide tabindex="0" {
            table {
                thead { tr {
                    th scope="col" { "Bundle" }
                    th scope="col" { "Version" }
                    th scope="col" .number { "Devices" }
                    th scope="col" { "Checks" }
                    th scope="col" { "Signed by" }
                    th scope="col" { "Digest" }
                    th scope="col" .number { "Size" }
                    th scope="col" { "Lineage" }
                    th scope="col" { "Pushed" }
                } }
                tbody { @for row in rows { (row) } }
            }
        }
        @if model.bundles.len() > MOST { p .faint { (model.bundles.len() - MOST) " older ones." } }
    })
}

fn row(web: &Web, record: &BundleRecord, manifest: Option<&Manifest>, devices: usize) -> Markup {
    html! {
        tr {
            th scope="row" { (record.name) }
            td { (record.version) @if !record.description.is_empty() { br; span .faint { (record.description) } } }
            td .number { (count(devices)) }
            td {
                @match (record.checks.passed, &record.overridden) {
                    (true, _) => (badge("good", "passed")),
                    (false, Some(by)) => { (badge("warn", "overridden")) " " (by.by) ": " (by.reason) },
                    (false, None) => (badge("bad", "failed")),
                }
                @if let Some(problem) = &record.checks.problem { br; span .faint { (problem) } }
            }
            td { @for key in &record.signers { (digest(&key.to_string())) " " } }
            td { (digest(&record.digest.to_string())) }
            td .number { (bytes(record.download_bytes())) }
            td {
                @if let Some(manifest) = manifest {
                    @if manifest.lineage.is_empty() { span .faint { "none told" } } @else {
                        details { summary { (manifest.lineage.len()) " facts" }
                            dl .facts { @for (name, value) in &manifest.lineage { dt { (name) } dd { (value) } } } }
                    }
                }
            }
            td { (ago(record.at, web.now())) " by " (record.pushed_by) }
        }
    }
}
