//! Waiting for a condition with a deadline: the only way a story lets time pass.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Long enough for anything a fleet does on a busy two-core machine, short enough to notice.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// Calls `check` until it succeeds. An error means "not yet".
///
/// # Errors
/// The last error of `check`, once `limit` has passed.
pub async fn until<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                return Err(error).with_context(|| format!("waited {} s for {what}", limit.as_secs()));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Calls `check` for as long as `span` and expects it to succeed every time: for what must *not* happen.
///
/// # Errors
/// The first error of `check`.
pub async fn throughout(
    what: &str,
    span: Duration,
    mut check: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < span {
        check().await.with_context(|| format!("{what} did not hold for {} s", span.as_secs()))?;
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
