//! A plan's maintenance window: when a device may switch. The words of [`maintenance`], in the form of a plan
//! file; devices evaluate it themselves, also offline.
//!
//! [`maintenance`]: edgefleet_shared::maintenance

use super::span::Span;
use edgefleet_shared::maintenance::{Cron, Download, MaintenanceWindow, WindowError, Zone};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Minute, hour, day of month, month, day of week: when it opens.
    pub cron: Cron,
    /// How long it stays open; at least half an hour.
    #[serde(rename = "for")]
    pub length: Span,
    #[serde(default)]
    pub zone: Zone,
    #[serde(default)]
    pub download: Download,
}

impl Window {
    /// As a device is told. `urgent`: it holds nothing up.
    ///
    /// # Errors
    /// [`WindowError`] if it is too short or too long; a checked plan's is neither.
    pub fn on_device(&self, urgent: bool) -> Result<MaintenanceWindow, WindowError> {
        let mut window = MaintenanceWindow::new(self.cron.clone(), self.length.as_secs(), self.zone.clone())?;
        window.download = self.download;
        window.ignore_window = urgent;
        Ok(window)
    }
}
