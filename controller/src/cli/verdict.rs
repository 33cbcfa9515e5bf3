//! A probe's verdict for people.

use super::{failure::Failure, table};
use edgefleet_shared::probe::ProbeVerdict;
use indicatif::HumanBytes;

/// What was checked and how it went.
pub(super) fn show(verdict: &ProbeVerdict) -> String {
    let mut rows = Vec::new();
    let mut row = |check: &str, result: String| rows.push(vec![check.to_owned(), result]);
    row("verdict", if verdict.ok { "accepted" } else { "REFUSED" }.to_owned());
    if let Some(failure) = &verdict.failure {
        row("reason", format!("{}: {}", failure.code.as_str(), failure.message));
        if let Some(node) = &failure.node {
            row("node", node.clone());
        }
        if let Some(op) = &failure.op {
            row("operator", op.clone());
        }
    }
    if let Some(engine) = &verdict.engine {
        row("engine", format!("{} {}", engine.name, engine.version));
    }
    if !verdict.operators.is_empty() {
        let operators: Vec<_> =
            verdict.operators.iter().map(|(op, count)| format!("{op} {count}x")).collect();
        row("operators", operators.join(", "));
    }
    for golden in &verdict.golden {
        let result = if golden.passed { "passed" } else { "FAILED" };
        let mismatch = golden.mismatch.as_ref().map(|text| format!(", {text}")).unwrap_or_default();
        let name = format!("golden {}", golden.name);
        row(&name, format!("{result}, largest difference {:.1e}{mismatch}", golden.max_abs_diff));
    }
    if let Some(measured) = &verdict.measured {
        row("load", format!("{:.1} ms", measured.load_ms));
        row("inference", format!("p50 {:.2} ms, p95 {:.2} ms", measured.p50_ms, measured.p95_ms));
        row("memory", HumanBytes(measured.peak_memory_bytes).to_string());
    }
    let walls = &verdict.confinement;
    row("walls", format!("landlock {}, seccomp {}, limits {}", walls.landlock, walls.seccomp, walls.limits));
    table::wrapped(&["CHECK", "RESULT"], rows.into_iter())
}

/// Why a built bundle is of no use.
pub(super) fn failure(verdict: &ProbeVerdict) -> Failure {
    let reason = verdict.failure.as_ref().map_or_else(
        || "the probe gave no reason".to_owned(),
        |failure| format!("{}: {}", failure.code.as_str(), failure.message),
    );
    let mut failure = Failure::new(format!("{} was built, but every device would refuse it", verdict.bundle));
    failure.causes.push(reason);
    failure
}
