//! An action as the one line a person can type.

use super::action::Action;

/// For the advice with this id; complete as it stands. What changes something is looked at first.
pub fn command(advice: &str, action: &Action) -> String {
    match action {
        Action::InspectDevice { device, .. } => format!("edgefleet device show {device}"),
        Action::InspectDevices { devices, .. } if !devices.is_empty() => {
            format!("edgefleet device show {}", devices[0])
        }
        Action::InspectDevices { .. }
        | Action::OpenLabelling { .. }
        | Action::ProposeThresholds { .. }
        | Action::PushCalibration { .. }
        | Action::ProposeBaseline { .. }
        | Action::SeasonalBaselines { .. }
        | Action::RollBack { .. }
        | Action::CompareSteps { .. }
        | Action::StartCanary { .. }
        | Action::RaiseAuditRate { .. }
        | Action::ShowFault { .. }
        | Action::EnableImputation { .. }
        | Action::TargetCaptures { .. }
        | Action::LabelDisagreements { .. }
        | Action::RelieveQueue { .. }
        | Action::LowerDuty { .. }
        | Action::LighterModel { .. }
        | Action::PreferVariant { .. }
        | Action::EnableCache { .. }
        | Action::CheaperInput { .. }
        | Action::ChangeQuota { .. }
        | Action::DistrustEstimator { .. }
        | Action::ListStragglers { .. } => format!("edgefleet advice take {advice} --dry-run"),
    }
}
